"""Promises of `vrepl check`: every line says what is wrong and what to do, and what cannot be asked is not guessed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from vrepl.checks import run_checks
from vrepl.checks.facts import World
from vrepl.checks.result import CheckResult, NagiosStatus, Status, nagios_line, nagios_status
from vrepl.config import LoadedConfig, parse
from vrepl.errors import AuthenticationError, CertificateError, LibraryError, NotFoundError, UsageError, VreplError
from vrepl.model import (
    DataEngine,
    Datastore,
    Disk,
    Hardware,
    PowerState,
    ReplicaPlacement,
    Snapshot,
    TransportMode,
    VirtualMachine,
)
from vrepl.model.selection import Candidate
from vrepl.ports import SiteConnection
from vrepl.repository.store import Repository

NOW = dt.datetime(2025, 3, 1, 22, 0, tzinfo=dt.UTC)
GIB = 1 << 30

CONFIG = """
[sites.prod]
server = "vc.prod"
user = "u"
password = { env = "P" }
[sites.dr]
server = "vc.dr"
user = "u"
password = { env = "P" }
nfc_port = 1902
[repository]
path = "repository"
[jobs.demo]
source = "prod"
target = "dr"
vms = ["web-01"]
target_datastore = "dr-01"
"""


def machine(name: str = "web-01", **changes: object) -> VirtualMachine:
    values: dict[str, object] = {
        "ref": "vm-1",
        "name": name,
        "instance_uuid": "i-1",
        "bios_uuid": "b-1",
        "power": PowerState.OFF,
        "host": "esx-1",
        "datacenter": "dc",
        "folder_ref": "group-1",
        "hardware": Hardware(19, "other", "efi", False, 1, 1, 512),
        "disks": (Disk(2000, 0, "Hard disk 1", "[a] a/a.vmdk", "[a] a/a.vmdk", GIB, "u", "a"),),
        "cbt_enabled": True,
    }
    return VirtualMachine(**(values | changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class EsxiHost:
    name: str
    connected: bool = True


@dataclass(frozen=True)
class Lacked:
    privilege: str
    entity: str
    why: str


@dataclass
class FakeSite:
    product: str = "VMware vCenter Server 8.0.3"
    tls_error: VreplError | None = None
    login_error: VreplError | None = None
    clock: dt.datetime = NOW
    hosts_there: tuple[EsxiHost, ...] = (EsxiHost("esx-1"), EsxiHost("esx-2"))
    lacking_source: tuple[Lacked, ...] = ()
    lacking_target: tuple[Lacked, ...] = ()
    lacking_proxy: tuple[Lacked, ...] = ()
    networks: frozenset[str] = frozenset({"VM Network"})
    lacking_scripts: tuple[Lacked, ...] = ()
    lacking_addresses: tuple[Lacked, ...] = ()
    lacking_failover: tuple[Lacked, ...] = ()
    vms: list[VirtualMachine] = field(default_factory=list)
    free: int = 10 * GIB

    def candidates(self, tag_patterns: Sequence[str]) -> list[Candidate]:
        del tag_patterns
        return []

    def connection(self) -> SiteConnection:
        if self.tls_error:
            raise self.tls_error
        return SiteConnection("vc", 443, 902, "u", "secret", "AA")

    def login(self) -> None:
        if self.login_error:
            raise self.login_error

    def current_time(self) -> dt.datetime:
        return self.clock

    def hosts(self) -> Sequence[EsxiHost]:
        return self.hosts_there

    def lacking_as_source(
        self, vm_refs: Sequence[str], datastore_refs: Sequence[str], engine: DataEngine
    ) -> Sequence[Lacked]:
        del vm_refs, datastore_refs
        return self.lacking_source

    def lacking_as_hotadd_proxy(self, vm_ref: str, engine: DataEngine) -> Sequence[Lacked]:
        return [one for one in self.lacking_proxy if vm_ref == "vm-proxy"]

    def lacking_for_guest_addresses(self, vm_refs: Sequence[str]) -> Sequence[Lacked]:
        return self.lacking_addresses if vm_refs else ()

    def lacking_for_failover(self, vm_refs: Sequence[str]) -> Sequence[Lacked]:
        return self.lacking_failover if vm_refs else ()

    def lacking_for_guest_scripts(self, vm_refs: Sequence[str]) -> Sequence[Lacked]:
        return self.lacking_scripts if vm_refs else ()

    def lacking_as_target(self, placement: ReplicaPlacement, engine: DataEngine) -> Sequence[Lacked]:
        unknown = set(placement.networks.values()) - self.networks
        if unknown:
            raise NotFoundError(f"there is no network {unknown.pop()}")
        return self.lacking_target

    def list_vms(self) -> list[VirtualMachine]:
        return self.vms

    def datastores(self) -> list[Datastore]:
        return [Datastore("d-1", "dr-01", "VMFS", 100 * GIB, self.free)]


@dataclass
class FakeNetwork:
    unknown: frozenset[str] = frozenset()
    closed: frozenset[tuple[str, int]] = frozenset()
    reached: list[tuple[str, int]] = field(default_factory=list)

    def resolve(self, name: str) -> str:
        if name in self.unknown:
            raise OSError(2, "Name or service not known")
        return "192.0.2.1"

    def reach(self, name: str, port: int) -> None:
        self.reached.append((name, port))
        if (name, port) in self.closed:
            raise OSError(111, "Connection refused")


@dataclass
class FakeVddk:
    error: VreplError | None = None

    def load(self) -> str:
        if self.error:
            raise self.error
        return "libvixDiskLib.so.8"

    def read_sector(self, site: str, vm: VirtualMachine, modes: Sequence[TransportMode]) -> str:
        del site, vm
        return modes[0].value


@dataclass
class Setup:
    """A world in which all is well; tests break one thing in it."""

    folder: Path
    prod: FakeSite = field(default_factory=lambda: FakeSite(vms=[machine()]))
    dr: FakeSite = field(default_factory=FakeSite)
    network: FakeNetwork = field(default_factory=FakeNetwork)
    vddk: FakeVddk = field(default_factory=FakeVddk)
    secret_error: VreplError | None = None
    engine: tuple[DataEngine, str] = (DataEngine.VDDK, "")
    vddk_is_missed: bool = False
    more: str = ""
    """Of the configuration."""
    pairs: list[tuple[str | None, str | None]] = field(default_factory=list)
    cut: set[tuple[str | None, str | None]] = field(default_factory=set)
    """Pairs of proxies between which no stream is to be had."""
    far: dict[str, dict[str, str] | VreplError] = field(default_factory=dict)
    """By proxy behind ssh: which hosts' ports are closed to it, or that it cannot be asked."""

    def site(self, name: str) -> FakeSite:
        if self.secret_error:
            raise self.secret_error
        return {"prod": self.prod, "dr": self.dr}[name]

    def results(self, *jobs: str) -> list[CheckResult]:
        loaded = LoadedConfig(self.folder / "vrepl.toml", parse(CONFIG + self.more, "vrepl.toml", self.folder))
        world = World(
            loaded,
            self.site,
            lambda: Repository.open(loaded.config.repository.path, create=True),
            self.network,
            lambda _proxy: self.vddk,
            lambda: NOW,
            stream=self.joined,
            closed_ports=lambda proxy, _hosts, _port: self.asked_there(proxy),
            engine=lambda proxy: (self.asked_there(proxy), self.engine)[1],
            vddk_is_missed=lambda _proxy: self.vddk_is_missed,
        )
        return list(run_checks(world, jobs))

    def joined(self, source: str | None, target: str | None) -> str | None:
        self.pairs.append((source, target))
        if (source, target) in self.cut:
            raise VreplError("it cannot connect", hint="firewalls?")
        return None if source is None else "10.1.2.3, port 47100"

    def asked_there(self, proxy: str | None) -> dict[str, str]:
        answer = self.far.get(proxy or "", {})
        if isinstance(answer, VreplError):
            raise answer
        return answer

    def bad(self) -> dict[str, CheckResult]:
        return {one.name: one for one in self.results() if one.status in {Status.FAILED, Status.WARNING}}


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_all_well(setup: Setup) -> None:
    results = setup.results()
    assert {result.status for result in results} == {Status.OK, Status.SKIPPED}
    assert [r.name for r in results if r.status is Status.SKIPPED] == ["VDDK reads from dr (job demo)"], (
        "no replica yet"
    )
    assert ("esx-2", 902) in setup.network.reached
    assert ("esx-2", 1902) in setup.network.reached, "a site may move the NFC port"


def test_checks_come_in_groups_and_a_job_may_be_asked_alone(setup: Setup) -> None:
    groups = [result.group for result in setup.results()]
    assert list(dict.fromkeys(groups)) == ["this machine", "site prod", "site dr", "job demo"]
    assert sorted(groups, key=list(dict.fromkeys(groups)).index) == groups, "each in one piece"
    assert [result.name for result in setup.results("demo")] == [result.name for result in setup.results()]
    with pytest.raises(NotFoundError):
        setup.results("nope")


def test_vddk_reads_where_an_esxi_host_can_be_reached(setup: Setup) -> None:
    ours = {"vrepl.source": "prod"}
    setup.dr.vms = [machine("r1", extra_config=ours), machine("r2", host="esx-2", extra_config=ours)]
    setup.network.closed = frozenset({("esx-1", 902), ("esx-1", 1902)})
    results = {one.name: one for one in setup.results()}
    assert results["VDDK reads from dr (job demo)"].detail == "first sector of r2 over nbdssl"
    prod = results["VDDK reads from prod (job demo)"]
    assert (prod.status, prod.detail) == (Status.SKIPPED, "port 902 of esx-1 cannot be reached: see that")
    assert set(setup.bad()) == {"port 902 of esx-1 (prod)", "port 1902 of esx-1 (dr)"}


FAR = """
proxy = { source = ["far-1", "far-2"], target = "here" }
[proxies.far-1]
ssh = "far-1"
[proxies.far-2]
ssh = "far-2"
[proxies.here]
"""


def test_ports_are_asked_where_the_movers_are(setup: Setup) -> None:
    """What this machine reaches says nothing of a proxy; nor must it reach what proxies reach."""
    setup.more = FAR
    setup.network.closed = frozenset({("esx-1", 902)})
    setup.far["far-2"] = {"esx-2": "Connection refused"}
    [bad] = setup.bad().values()
    assert (bad.name, bad.status) == ("port 902 of esx-2 from proxy far-2 (prod)", Status.FAILED)
    assert "Connection refused" in bad.detail
    assert "from it to esx-2" in (bad.hint or "")
    names = {result.name for result in setup.results()}
    assert {"port 902 of esx-1 from proxy far-1 (prod)", "port 902 of esx-1 from proxy far-2 (prod)"} <= names
    assert "port 1902 of esx-1 (dr)" in names, "a proxy without ssh is this machine"
    assert ("esx-1", 902) not in setup.network.reached
    readers = {one.name: one for one in setup.results()}
    assert readers["VDDK reads from prod (job demo)"].status is Status.OK


def test_the_line_between_proxies_is_tried(setup: Setup) -> None:
    """Every machine once, not every pair; one at both ends needs no line."""
    setup.more = FAR.replace('"here"', '["far-2", "here"]')
    names = [one.name for one in setup.results() if one.name.startswith("stream")]
    assert setup.pairs == [("far-1", "far-2"), ("far-1", "here")]
    assert names == [f"stream from proxy far-1 to proxy {other} (job demo)" for other in ("far-2", "here")]
    setup.cut = {("far-1", "here")}
    [bad] = setup.bad().values()
    assert (bad.name, bad.status, bad.detail) == (names[1], Status.FAILED, "it cannot connect")
    setup.more, setup.pairs = "", []
    assert not setup.bad()
    assert setup.pairs == [], "one machine needs no line"


def test_a_proxy_that_does_not_answer_is_named(setup: Setup) -> None:
    setup.more = FAR
    setup.far["far-1"] = VreplError("proxy far-1 cannot be reached", hint="does `ssh far-1 true` work?")
    bad = setup.bad()
    assert set(bad) == {"proxy far-1", "ESXi hosts of prod from proxy far-1"}
    skipped = [one for one in setup.results() if one.status is Status.SKIPPED]
    assert [one.detail for one in skipped] == ["proxy far-1 cannot be asked"]


def test_vddk_that_was_to_be_there_is_missed(setup: Setup) -> None:
    setup.engine = (DataEngine.OWN, "no VDDK in /opt/vddk")
    assert setup.bad() == {}, "nobody said where it is to be"
    setup.vddk_is_missed = True
    [missed] = setup.bad().values()
    assert (missed.name, missed.status) == ("data engine", Status.WARNING)
    assert missed.detail.startswith("no VDDK in /opt/vddk, where the configuration has it")


def test_a_closed_port_names_its_host_and_no_other(setup: Setup) -> None:
    setup.network.closed = frozenset({("esx-2", 902)})
    (bad,) = setup.bad().values()
    assert bad.name == "port 902 of esx-2 (prod)"
    assert bad.hint is not None
    assert "TCP 902" in bad.hint


def test_a_host_without_a_name_is_told_and_not_dialled(setup: Setup) -> None:
    setup.network.unknown = frozenset({"esx-1"})
    assert set(setup.bad()) == {"DNS of esx-1 (prod)", "DNS of esx-1 (dr)"}
    assert ("esx-1", 902) not in setup.network.reached


def test_missing_privileges_are_named_with_where_and_what_for(setup: Setup) -> None:
    revert = "VirtualMachine.State.RevertToSnapshot"
    setup.dr.lacking_target = (
        *(Lacked(revert, f"Folder group-{i}", "give up a leaf") for i in range(3)),
        Lacked("Global.DisableMethods", "Folder group-d1", "PrepareForAccess"),
    )
    (bad,) = setup.bad().values()
    assert bad.name == "privileges on dr as target (job demo)"
    assert f"{revert} is missing on Folder group-0, Folder group-1 and 1 more" in bad.detail
    assert bad.hint is not None
    assert "Global.DisableMethods (PrepareForAccess)" in bad.hint


def test_networks_of_a_failover_are_looked_for_while_there_is_time(setup: Setup) -> None:
    setup.more = '[jobs.demo.failover]\nnetworks = { "Idle" = "VM Network" }\n'
    assert setup.bad() == {}
    setup.more = setup.more.replace('"VM Network"', '"VM-Network"')
    [bad] = setup.bad().values()
    assert bad.name == "privileges on dr as target (job demo)"
    assert "there is no network VM-Network" in bad.detail


def test_address_rules_are_looked_at_with_the_guests_and_the_privilege(setup: Setup) -> None:
    [vm] = setup.prod.vms
    setup.more = '[jobs.demo.failover]\naddresses = ["10.1.0.0/16 -> 10.2.0.0/16"]\n'
    customise = "VirtualMachine.Provisioning.Customize"
    setup.dr.lacking_addresses = (Lacked(customise, "VirtualMachine replica", "set guests' addresses"),)
    [bad] = setup.bad().values()
    assert bad.name == "addresses of guests (job demo)"
    assert f"vCenter would not set those of {vm.name}" in bad.detail, "its guest system is one of neither family"
    setup.prod.vms = [replace(vm, hardware=replace(vm.hardware, guest_id="rhel9_64Guest"))]
    assert setup.bad() == {}, "no replica yet"
    setup.dr.vms = [machine(f"{vm.name}-replica", extra_config={"vrepl.source": "prod"})]
    [bad] = setup.bad().values()
    assert bad.name == "privileges for addresses of guests (job demo)"
    assert customise in f"{bad.detail} {bad.hint}"


def test_what_a_failover_lacks_is_a_warning_as_soon_as_there_is_a_replica(setup: Setup) -> None:
    [vm] = setup.prod.vms
    power_on = "VirtualMachine.Interact.PowerOn"
    setup.dr.lacking_failover = (Lacked(power_on, "VirtualMachine replica", "start replicas"),)
    assert setup.bad() == {}, "no replica yet"
    setup.dr.vms = [machine(f"{vm.name}-replica", extra_config={"vrepl.source": "prod"})]
    [bad] = setup.bad().values()
    assert (bad.name, bad.status) == ("privileges for a failover (job demo)", Status.WARNING)
    assert power_on in f"{bad.detail} {bad.hint}"


def test_scripts_of_guests_are_looked_for_with_logins_and_privileges(setup: Setup) -> None:
    setup.more = """
[jobs.demo.guest]
pre_freeze = "freeze.sh"
host_post_thaw = "no-such-command --now"
logins = { "db-*" = { user = "root", password = { file = "guest" } } }
"""
    execute = "VirtualMachine.GuestOperations.Execute"
    setup.prod.lacking_scripts = (Lacked(execute, "VirtualMachine web-01", "run scripts in guests"),)
    bad = setup.bad()
    assert set(bad) == {"scripts of job demo", "privileges for scripts in guests (job demo)"}
    said = bad["scripts of job demo"].detail
    assert "freeze.sh cannot be read" in said
    assert "no-such-command is no command here" in said
    assert "no login for the guests of" in said
    setup.prod.lacking_scripts = ()
    setup.more = setup.more.replace("no-such-command", "sh").replace("db-*", "*")
    (setup.folder / "freeze.sh").write_text("#!/bin/sh\n")
    assert setup.bad() == {}


def test_a_site_is_asked_only_for_the_privileges_of_its_role(setup: Setup) -> None:
    setup.prod.lacking_target = (Lacked("Datastore.AllocateSpace", "Folder", "disks"),)
    assert setup.bad() == {}


@pytest.mark.parametrize(
    ("break_it", "name"),
    [
        (lambda s: setattr(s.dr, "login_error", AuthenticationError("refused", hint="h")), "login to dr"),
        (lambda s: setattr(s.dr, "tls_error", CertificateError("self-signed", hint="h")), "TLS of dr"),
        (lambda s: setattr(s.network, "closed", frozenset({("vc.dr", 443)})), "port 443 of vc.dr (dr)"),
        (lambda s: setattr(s.network, "unknown", frozenset({"vc.dr"})), "DNS of vc.dr (dr)"),
        (lambda s: setattr(s.vddk, "error", LibraryError("none", hint="h")), "VDDK library"),
        (lambda s: setattr(s.dr, "clock", NOW + dt.timedelta(seconds=90)), "clock of dr"),
        (lambda s: setattr(s.dr, "free", GIB // 2), "space on dr-01 (dr)"),
        (lambda s: setattr(s.prod, "vms", [machine("web-02")]), "VM web-01 (job demo)"),
        (lambda s: setattr(s.prod, "vms", [machine(template=True)]), "VM web-01 (job demo)"),
        (lambda s: setattr(s.prod, "vms", [machine(cbt_enabled=False, cbt_supported=False)]), "CBT of web-01"),
        (
            lambda s: setattr(s.prod, "vms", [machine(snapshots=(Snapshot("s", "vrepl-source-x", "", NOW, None),))]),
            "snapshots of web-01",
        ),
        (
            lambda s: s.prod.vms.append(machine("old-01", snapshots=(Snapshot("s", "vrepl-source-x", "", NOW, None),))),
            "snapshots of old-01",
        ),
        (
            lambda s: setattr(s.prod, "vms", [machine(disabled_methods=("CreateSnapshot_Task", "RelocateVM_Task"))]),
            "methods of web-01",
        ),
        (lambda s: setattr(s.prod, "hosts_there", (EsxiHost("esx-1", connected=False),)), "ESXi host esx-1 (prod)"),
    ],
)
def test_one_thing_broken_is_one_line_with_a_hint(setup: Setup, break_it: Callable[[Setup], None], name: str) -> None:
    break_it(setup)
    (bad,) = setup.bad().values()
    assert bad.name == name
    assert bad.hint


def test_methods_that_the_state_of_a_vm_disables_are_no_news(setup: Setup) -> None:
    setup.prod.vms = [machine(disabled_methods=("PowerOffVM_Task", "RemoveAllSnapshots_Task", "MarkAsVirtualMachine"))]
    assert not setup.bad()
    setup.prod.vms = [machine(disabled_methods=("PowerOnVM_Task", "RelocateVM_Task"))]
    (bad,) = setup.bad().values()
    assert "RelocateVM_Task disabled in vSphere: somebody keeps it from being moved" in bad.detail
    assert "PowerOnVM_Task" not in bad.detail
    assert "another product" in str(bad.hint)


def test_a_secret_that_cannot_be_had_stops_only_what_needs_it(setup: Setup) -> None:
    setup.secret_error = UsageError("mode 0644", hint="chmod 600")
    results = setup.results()
    assert [r.name for r in results if r.status is Status.FAILED] == ["secret of prod", "secret of dr"]
    assert results[-1] == CheckResult("job demo", Status.SKIPPED, "its sites cannot be asked", group="job demo")


def test_nagios(setup: Setup) -> None:
    assert nagios_status(setup.results()) is NagiosStatus.OK
    assert nagios_line(setup.results()).startswith("VREPL OK - ")
    setup.network.closed = frozenset({("esx-2", 902)})
    results = setup.results()
    assert nagios_status(results) is NagiosStatus.CRITICAL
    line = nagios_line(results)
    assert line.startswith("VREPL CRITICAL - port 902 of esx-2 (prod): ")
    assert line.count("|") == 1
    assert "failed=1" in line
    assert nagios_status([]) is NagiosStatus.UNKNOWN
