"""Promises of the configuration: every mistake at once, each with its key path, and never a password in a message."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest

from vrepl.app.machines import launcher_of, proxy_machine
from vrepl.config import find, load, parse, search_path
from vrepl.config.example import EXAMPLE
from vrepl.config.fields import SecretTable
from vrepl.config.job import GuestTable, JobTable, RetentionTable, TransportTable
from vrepl.config.load import LoadedConfig
from vrepl.config.model import ProxyTable, SiteTable, VddkTable
from vrepl.config.plan import PlanTable
from vrepl.config.show import effective, to_toml
from vrepl.config.units import format_rate, parse_duration, parse_rate, parse_window
from vrepl.errors import ConfigError, NotFoundError, UsageError
from vrepl.model import OnResize, Quiesce, RetentionPolicy, TransportMode
from vrepl.model.plans import FailoverPlan, HeartbeatGate, PlanGroup, PlannedVm, PortGate

MINIMAL = """
[sites.prod]
server = "vc.prod"
user = "u"
password = { file = "secrets/prod" }
[sites.dr]
server = "vc.dr"
user = "u"
password = { env = "DR_PASSWORD" }
[repository]
path = "repository"
[jobs.demo]
source = "prod"
target = "dr"
vms = ["web-01", "db-01"]
target_datastore = "dr-01"
"""


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "vrepl.toml", Path("/etc/vrepl"))
    return caught.value.problems


def test_five_mistakes_are_told_at_once() -> None:
    text = (
        MINIMAL.replace('user = "u"\npassword = { file = "secrets/prod" }', 'user = "u"\npassword = "hunter2"')
        .replace('source = "prod"', 'source = "prd"')
        .replace('vms = ["web-01", "db-01"]', "vms = []")
        .replace('target_datastore = "dr-01"', 'target_datastor = "dr-01"')
        + "[jobs.demo.retention]\nlast = 29\n"
    )
    problems = problems_of(text)
    assert sorted(problem.split(":")[0] for problem in problems) == [
        "jobs.demo.retention.last",
        "jobs.demo.source",
        "jobs.demo.target_datastor",
        "jobs.demo.target_datastore",
        "jobs.demo.vms",
        "sites.prod.password",
    ]
    by_path = dict(problem.split(": ", 1) for problem in problems)
    assert 'did you mean "target_datastore"?' in by_path["jobs.demo.target_datastor"]
    assert 'did you mean "prod"?' in by_path["jobs.demo.source"]
    assert by_path["jobs.demo.target_datastore"] == "is missing"
    assert "hunter2" not in " ".join(problems)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('[sites.prod]\nserver = "vc.prod"\nprot = 443', "sites.prod.prot: unknown key; did you mean"),
        ('[sites.prod]\nserver = "https://vc.prod/ui"', "sites.prod.server: takes a DNS name"),
        ('[sites.prod]\nserver = "vc.prod"\nport = 70000', "sites.prod.port: must be at most 65535"),
        ('[sites.prod]\nserver = "vc.prod"\nthumbprint_sha256 = "AB:CD"', "sites.prod.thumbprint_sha256: takes 64"),
        (
            f'[sites.prod]\nserver = "vc.prod"\nca_file = "ca.pem"\nthumbprint_sha256 = "{"ab" * 32}"',
            "sites.prod: takes ca_file or thumbprint_sha256, not both",
        ),
    ],
)
def test_mistakes_of_a_site(change: str, expected: str) -> None:
    (problem,) = problems_of(MINIMAL.replace('[sites.prod]\nserver = "vc.prod"', change))
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('quiesce = "maybe"', 'jobs.demo.quiesce: takes "require", "prefer" or "never"'),
        ('transport = { source = ["nbdssl", "nfs"] }', "jobs.demo.transport.source.1: takes"),
        ('transport = { target = ["nbdssl", "nbdssl"] }', "jobs.demo.transport.target: names a mode twice"),
        ("transport = { source = [] }", "jobs.demo.transport.source: "),
        ('bandwidth = "fast"', "jobs.demo.bandwidth.limit: 'fast' is no rate"),
        (
            'bandwidth = { limit = "1 MB/s", windows = { "22-6" = "unlimited" } }',
            "jobs.demo.bandwidth.windows: '22-6' is no time window",
        ),
        ("retention = { last = 20, daily = 7, weekly = 4 }", "jobs.demo.retention: last 20 + daily 7 + weekly 4 is 31"),
        ('replica_name = "{name}-{vm}"', "jobs.demo.replica_name: knows {name} and {job}, not {vm}"),
        ('replica_name = "one"', 'jobs.demo.replica_name: needs "{name}"'),
        ('proxy = "p"', 'jobs.demo.proxy: there is no proxy "p"'),
        ("parallel_vms = 0", 'jobs.demo.parallel_vms: takes "auto", or a number from 1 to 64'),
    ],
)
def test_mistakes_of_a_job(lines: str, expected: str) -> None:
    (problem,) = problems_of(MINIMAL + lines + "\n")
    assert problem.startswith(expected)


def test_the_password_table_takes_exactly_one_source() -> None:
    (problem,) = problems_of(MINIMAL.replace('{ env = "DR_PASSWORD" }', '{ env = "A", file = "b" }'))
    assert problem == "sites.dr.password: takes exactly one of file, env, command, keyring, credential"


def test_replicas_that_would_overwrite_each_other_are_refused() -> None:
    other = '[jobs.other]\nsource = "dr"\ntarget = "dr"\nvms = ["web-01"]\ntarget_datastore = "x"\n'
    (problem,) = problems_of(MINIMAL + other)
    assert '"web-01-replica" on site "dr"' in problem


def test_a_jobs_proxy_must_serve_both_its_sites() -> None:
    proxy = 'proxy = "p"\n[proxies.p]\nsites = ["prod"]\n'
    assert problems_of(MINIMAL + proxy) == ('jobs.demo.proxy: "p" does not serve site "dr"',)
    parse(MINIMAL + proxy.replace('["prod"]', '["prod", "dr"]'), "x", Path("/"))


def test_a_replica_on_its_own_site_needs_another_name() -> None:
    text = MINIMAL.replace('target = "dr"', 'target = "prod"\nreplica_name = "{name}"')
    assert all("like a source VM" in problem for problem in problems_of(text))


def test_a_vm_has_one_replica_per_repository() -> None:
    other = '[jobs.b]\nsource = "prod"\ntarget = "prod"\nvms = ["web-01"]\ntarget_datastore = "x"\n'
    (problem,) = problems_of(MINIMAL + other)
    assert 'is replicated by job "demo" already' in problem


def test_two_jobs_may_keep_the_same_replica() -> None:
    other = '[jobs.b]\nsource = "prod"\ntarget = "dr"\nvms = ["web-01"]\ntarget_datastore = "dr-01"\n'
    assert set(parse(MINIMAL + other, "x", Path("/")).jobs) == {"demo", "b"}


def test_a_syntax_error_names_its_line() -> None:
    (problem,) = problems_of("[sites.prod\n")
    assert "line 1" in problem


def test_defaults_reach_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "vrepl.toml"
    path.write_text(MINIMAL)
    job = load(path).job("demo")
    assert job.source_modes == (TransportMode.SAN, TransportMode.HOTADD, TransportMode.NBDSSL)
    assert (job.quiesce, job.on_resize, job.fallback, job.thin) == (Quiesce.PREFER, OnResize.REFUSE, True, None)
    assert job.retention == RetentionPolicy(last=7, daily=0, weekly=0)
    assert job.replica_name_of("web-01") == "web-01-replica"
    assert job.bandwidth.rate_at(dt.time(12)) is None


def test_the_slots_of_a_proxy_bound_the_disks_at_once(tmp_path: Path) -> None:
    path = tmp_path / "vrepl.toml"
    path.write_text(f'{MINIMAL}parallel_disks = 9\nproxy = "p"\n[proxies.p]\nslots = 2\n')
    assert load(path).job("demo").limits.parallel_disks == 2


def test_the_engine_knows_what_memory_a_disk_takes_of_a_host(tmp_path: Path) -> None:
    path = tmp_path / "vrepl.toml"
    path.write_text(f"{MINIMAL}[vddk]\nnfc_buffer_kib = 512\nnfc_buffer_count = 3\n")
    assert load(path).job("demo").limits.nfc_mib_per_disk == 1.5


def test_one_disks_buffers_must_fit_the_budget() -> None:
    (problem,) = problems_of(MINIMAL + "nfc_budget_mib = 3\n")
    assert problem == "jobs.demo.nfc_budget_mib: one disk's NFC buffers ([vddk]) take 4 MiB of it"


def test_where_both_ends_are_one_site_a_disk_takes_its_buffers_twice() -> None:
    lines = MINIMAL.replace('source = "prod"', 'source = "dr"') + 'replica_name = "r-{name}"\nnfc_budget_mib = 7\n'
    (problem,) = problems_of(lines)
    assert problem == "jobs.demo.nfc_budget_mib: one disk's NFC buffers ([vddk]) take 8 MiB of it"


@pytest.mark.parametrize(
    ("lines", "listens", "address", "bind", "ports"),
    [
        ("", True, "proxy-1.example.com", "", (0, 0)),
        ("listen = false", False, "proxy-1.example.com", "", (0, 0)),
        ('listen = "10.1.2.3"\nports = "47100-47131"', True, "proxy-1.example.com", "10.1.2.3", (47100, 47131)),
        ('address = "198.51.100.7"\nports = "47100"', True, "198.51.100.7", "", (47100, 47100)),
    ],
)
def test_where_movers_of_a_proxy_listen(
    tmp_path: Path, lines: str, listens: bool, address: str, bind: str, ports: tuple[int, int]
) -> None:
    path = tmp_path / "vrepl.toml"
    proxy = '[proxies.p]\nengine = "own"\nssh = "ssh://root@proxy-1.example.com:2222"'
    path.write_text(f'{MINIMAL}proxy = "p"\n{proxy}\n{lines}\n')
    launcher = launcher_of(proxy_machine(load(path), "p"))
    assert (launcher.listens, launcher.address, launcher.bind, launcher.ports) == (listens, address, bind, ports)


def test_a_job_may_name_a_proxy_for_each_side(tmp_path: Path) -> None:
    path = tmp_path / "vrepl.toml"
    proxies = '[proxies.p]\nslots = 3\nsites = ["prod"]\n[proxies.q]\nslots = 2\nsites = ["dr"]\n'
    path.write_text(f'{MINIMAL}parallel_disks = 9\nproxy = {{ source = "p", target = "q" }}\n{proxies}')
    job = load(path).job("demo")
    assert (job.source_proxies, job.target_proxies, job.limits.parallel_disks) == (("p",), ("q",), 2)
    assert (job.proxy_at("prod"), job.proxy_at("dr")) == ("p", "q")
    assert effective(load(path).config)["jobs"]["demo"]["proxy"] == {"source": "p", "target": "q"}
    path.write_text(f'{MINIMAL}proxy = {{ source = "p" }}\n{proxies}')
    job = load(path).job("demo")
    assert (job.source_proxies, job.target_proxies) == (("p",), ())
    path.write_text(
        f'{MINIMAL}parallel_disks = 9\nproxy = {{ source = ["p", "r"], target = "q" }}\n{proxies}[proxies.r]\n'
    )
    job = load(path).job("demo")
    assert (job.proxies_at("prod"), job.limits.parallel_disks) == (("p", "r"), 2)
    assert effective(load(path).config)["jobs"]["demo"]["proxy"] == {"source": ["p", "r"], "target": "q"}
    path.write_text(f'{MINIMAL}proxy = "p"\n[proxies.p]\n')
    assert effective(load(path).config)["jobs"]["demo"]["proxy"] == "p"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('proxy = { source = "p", target = "x" }\n[proxies.p]\n', 'jobs.demo.proxy: there is no proxy "x"'),
        (
            'proxy = { source = "p", target = "p" }\n[proxies.p]\nsites = ["prod"]\n',
            'jobs.demo.proxy: "p" does not serve site "dr"',
        ),
        (
            "proxy = 3\n",
            'jobs.demo.proxy: takes the name of a proxy, several, or { source = "NAME", target = ["NAME", "NAME"] }',
        ),
        ('proxy = { left = "p" }\n[proxies.p]\n', "jobs.demo.proxy.left: unknown key"),
    ],
)
def test_mistakes_of_a_proxy_for_each_side(lines: str, expected: str) -> None:
    assert problems_of(MINIMAL + lines) == (expected,)


def test_one_site_takes_one_proxy() -> None:
    text = MINIMAL.replace('target = "dr"', 'target = "prod"') + 'proxy = { source = "p" }\n[proxies.p]\n'
    assert problems_of(text) == ("jobs.demo.proxy: source and target are one site, which takes one proxy",)


def test_a_site_has_a_bandwidth_of_its_own() -> None:
    windows = '{ limit = "1 MB/s", windows = { "22:00-06:00" = "unlimited" } }'
    config = parse(MINIMAL.replace("[sites.dr]", f"[sites.dr]\nbandwidth = {windows}"), "x", Path("/"))
    bandwidth = config.sites["dr"].bandwidth.bandwidth()
    assert (bandwidth.rate_at(dt.time(12)), bandwidth.rate_at(dt.time(23))) == (1_000_000, None)
    assert config.sites["prod"].bandwidth.bandwidth().rate_at(dt.time(12)) is None
    assert effective(config)["sites"]["dr"]["bandwidth"]["limit"] == "1 MB/s"


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "vrepl.toml"
    path.write_text(MINIMAL)
    config = load(path).config
    assert config.repository.path == tmp_path / "repository"
    assert config.sites["prod"].password.reference().value == (str(tmp_path / "secrets/prod"),)
    assert config.sites["dr"].password.reference().kind == "env"


def test_unknown_jobs_and_sites_get_near_names(tmp_path: Path) -> None:
    path = tmp_path / "vrepl.toml"
    path.write_text(MINIMAL)
    loaded = load(path)
    with pytest.raises(NotFoundError, match='did you mean "demo"'):
        loaded.job("dmo")
    with pytest.raises(NotFoundError, match='did you mean "prod"'):
        loaded.require_site("prd")


def test_the_first_file_found_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = {"HOME": str(tmp_path / "home")}
    with pytest.raises(UsageError, match="looked for"):
        find(None, {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "none")})
    xdg = tmp_path / "home" / ".config" / "vrepl" / "vrepl.toml"
    xdg.parent.mkdir(parents=True)
    xdg.write_text(MINIMAL)
    assert find(None, home) == xdg
    (tmp_path / "vrepl.toml").write_text(MINIMAL)
    assert find(None, home) == Path("vrepl.toml")
    assert find(None, {**home, "VREPL_CONFIG": str(xdg)}) == xdg
    with pytest.raises(UsageError, match="--config"):
        find(tmp_path / "absent.toml", home)
    assert [path.parent for path in search_path(home)][2] == Path("/etc/vrepl")


def test_the_example_is_valid() -> None:
    assert set(parse(EXAMPLE, "example", Path("/etc/vrepl")).jobs) == {"web"}


COMMENTED = [line for line in EXAMPLE.splitlines() if re.match(r"# [a-z_0-9]+ = ", line)]


@pytest.mark.parametrize("line", COMMENTED)
def test_every_commented_key_of_the_example_may_be_taken_in(line: str) -> None:
    text = EXAMPLE.replace("# [proxies.proxy-1]", "[proxies.proxy-1]").replace(line, line.removeprefix("# "))
    parse(text.replace("AB:CD:…", "ab" * 32), "example", Path("/etc/vrepl"))


def test_the_example_explains_every_key() -> None:
    tables = (
        SiteTable,
        VddkTable,
        ProxyTable,
        JobTable,
        GuestTable,
        RetentionTable,
        TransportTable,
        SecretTable,
        PlanTable,
    )
    keys = {key for table in (*tables, PlanTable) for key in table.model_fields}
    assert {key for key in keys if not re.search(rf"\b{key}\b", EXAMPLE)} == set()


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50 MiB/s", 50 * 2**20),
        ("1.5MB/s", 1_500_000),
        ("400 Mbit/s", 50_000_000),
        ("8 b/s", 8),
        ("Unlimited", None),
    ],
)
def test_rates(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize("text", ["", "50", "50 MiB", "0 MiB/s", "-1 MB/s", "50 XB/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        parse_rate(text)


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("10m", 600), ("1h30m", 5400), ("2d", 172800), ("7", 7)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10 x", "m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


def test_a_window_may_cross_midnight() -> None:
    start, end = parse_window("22:00-06:00")
    config = parse(
        MINIMAL + 'bandwidth = { limit = "1 MiB/s", windows = { "22:00-06:00" = "unlimited" } }\n', "x", Path("/")
    )
    bandwidth = config.jobs["demo"].settings("demo").bandwidth
    assert (start, end) == (dt.time(22), dt.time(6))
    assert bandwidth.rate_at(dt.time(23)) is None
    assert bandwidth.rate_at(dt.time(5, 59)) is None
    assert bandwidth.rate_at(dt.time(6)) == 2**20


def test_the_example_file_is_what_init_writes() -> None:
    shipped = Path(__file__).parents[2] / "examples" / "vrepl.toml"
    assert shipped.read_text(encoding="utf-8") == EXAMPLE


PLAN = """
[plans.site]
gates = "heartbeat"
before = "/usr/local/bin/tell begin"

[[plans.site.groups]]
name = "base"
vms = ["db-01"]

[[plans.site.groups]]
vms = ["web-*", { name = "web-01", delay = "30s", gates = ["heartbeat", "port:443"], gate_timeout = "10m" }]
delay = 5
gates = []
"""


def test_a_plan_is_what_its_tables_say_and_what_a_vm_does_not_say_its_group_and_its_plan_do() -> None:
    loaded = LoadedConfig(Path("/etc/vrepl/vrepl.toml"), parse(MINIMAL + PLAN, "vrepl.toml", Path("/etc/vrepl")))
    [plan] = loaded.plans("dr")
    assert loaded.plans("prod") == []
    assert plan == FailoverPlan(
        "site",
        (
            PlanGroup("base", (PlannedVm("db-01", 0, (HeartbeatGate(300),)),)),
            PlanGroup(
                "2",
                (PlannedVm("web-*", 5), PlannedVm("web-01", 30, (HeartbeatGate(600), PortGate(443, 600)))),
            ),
        ),
        before=("/usr/local/bin/tell", "begin"),
    )
    shown = to_toml(effective(loaded.config))
    assert "begin" not in shown
    again = LoadedConfig(loaded.path, parse(shown, "shown", Path("/")))
    assert again.plans()[0].groups == plan.groups


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ('[{ vms = ["web-1"] }]', 'plans.site.groups.0.vms: no job replicates "web-1"; did you mean "web-01"?'),
        (
            '[{ vms = ["web-01"] }, { name = "app", vms = ["db-01", { name = "web-01" }] }]',
            'plans.site: "web-01" is in 1 and app: a VM starts in one group',
        ),
        ('[{ vms = ["web-01", "web-01"] }]', 'plans.site: "web-01" is in group 1 twice'),
        ('[{ vms = ["web-01"], name = "2" }, { vms = ["db-01"] }]', 'plans.site: two groups have the name "2"'),
        ('[{ vms = ["web-01"], gates = "ping" }]', "plans.site.groups.0.gates: ping: expected heartbeat, port:NUMBER"),
        ('[{ vms = ["web-01"], gate = "heartbeat" }]', 'plans.site.groups.0.gate: unknown key; did you mean "gates"?'),
        ("[{ vms = [] }]", "plans.site.groups.0.vms: must not be empty"),
        ("[]", "plans.site.groups: must not be empty"),
    ],
)
def test_mistakes_of_a_plan(groups: str, expected: str) -> None:
    (problem,) = problems_of(MINIMAL + f"[plans.site]\ngroups = {groups}\n")
    assert problem.startswith(expected)


def test_the_replicas_of_one_plan_are_at_one_site() -> None:
    other = MINIMAL.split("[jobs.demo]")[1].replace('"web-01", "db-01"', '"mail-01"').replace('"dr"', '"prod"')
    text = MINIMAL + "[jobs.mail]" + other.replace('source = "prod"', 'source = "dr"')
    (problem,) = problems_of(text + '[plans.site]\ngroups = [{ vms = ["web-01", "mail-01"] }]\n')
    assert problem == 'plans.site: the replicas of one plan are at one site; here are "web-01" at dr, "mail-01" at prod'
