"""`vrepl config role`: what the jobs make of a site, as commands that another program understands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from vrepl.app.roles import engines_of, in_form, roles_of
from vrepl.cli import main
from vrepl.config.example import EXAMPLE
from vrepl.config.load import parse
from vrepl.config.model import Config
from vrepl.model import DataEngine
from vrepl.vsphere.privileges import NEEDS, Role


def configured(more: str = "", *, text: str = EXAMPLE) -> Config:
    return parse(text.replace("[jobs.web.guest]\n", f"[jobs.web.guest]\n{more}\n"), "example", Path("/etc/vrepl"))


def uses(config: Config, site: str, *, failback: bool = False) -> list[tuple[str, set[Role]]]:
    return [(role.name, set(role.uses)) for role in roles_of(config, site, failback=failback)]


BOTH = {Role.SOURCE, Role.TARGET, Role.FAILOVER}


def test_a_site_gets_what_its_jobs_make_of_it() -> None:
    config = configured()
    assert uses(config, "prod") == [
        ("vrepl-source", {Role.SOURCE}),
        ("vrepl-source-proxy", {Role.SOURCE, Role.HOTADD_PROXY}),
    ]
    assert uses(config, "dr")[0] == ("vrepl-target", {Role.TARGET, Role.FAILOVER})
    assert uses(config, "prod", failback=True)[0] == ("vrepl-source-target", BOTH)
    no_hotadd = configured(text=EXAMPLE.replace('source = ["san", "hotadd", "nbdssl"]', 'source = ["nbdssl"]'))
    assert uses(no_hotadd, "prod") == [("vrepl-source", {Role.SOURCE})]
    scripts = configured('pre_freeze = "/etc/freeze.sh"')
    assert uses(scripts, "prod")[0][1] == {Role.SOURCE, Role.GUEST_SCRIPTS}
    assert uses(scripts, "dr")[0][1] == {Role.TARGET, Role.FAILOVER}
    rule = '\naddresses = ["10.1.0.0/16 -> 10.2.0.0/16"]\n'
    moved = configured(text=EXAMPLE.replace("[jobs.web.failover]\n", f"[jobs.web.failover]{rule}"))
    assert uses(moved, "dr")[0][1] == {Role.TARGET, Role.FAILOVER, Role.GUEST_ADDRESSES}
    assert uses(moved, "prod")[0][1] == {Role.SOURCE}
    assert Role.GUEST_ADDRESSES in uses(moved, "prod", failback=True)[0][1]


@pytest.mark.parametrize("site", ["prod", "dr"])
def test_every_form_names_every_privilege_once(site: str) -> None:
    roles = roles_of(configured(), site, failback=True)
    for role in roles:
        wanted = {need.privilege for use in role.uses for need in NEEDS[use]} - {"System.Read"}
        assert set(role.privileges) == wanted
        create, assign = (shlex.split(line) for line in govc_lines(in_form("govc", [role], "o'hara@vsphere.local")))
        assert create[:3] == ["govc", "role.create", role.name]
        assert sorted(create[3:]) == sorted(wanted)
        assert assign[2:4] == ["-principal", "o'hara@vsphere.local"]
        told = in_form("powercli", [role], "o'hara@vsphere.local")
        assert sorted(re.findall(r"'([A-Z]\w+\.[\w.]+)'", told)) == sorted(wanted)
        assert f"New-VIRole -Name '{role.name}'" in told
        assert "-Principal 'o''hara@vsphere.local'" in told
        listed = in_form("list", [role], "").splitlines()[1:]
        assert {line.split()[0] for line in listed} - {"System.Read"} == wanted


@pytest.mark.parametrize(
    ("more", "vddk", "own"),
    [
        ("", True, True),
        ('engine = "own"', False, True),
        ('engine = "vddk"', True, False),
        ('engine = "own"\n[proxies.far]\nengine = "vddk"', True, True),
        ('engine = "own"\n[proxies.far]\nengine = "auto"', True, True),
    ],
)
def test_a_role_holds_what_the_configured_engines_want(more: str, vddk: bool, own: bool) -> None:
    config = configured(text=EXAMPLE.replace("[vddk]\n", f"[vddk]\n{more}\n"))
    engines = {DataEngine.VDDK} if vddk else set()
    engines |= {DataEngine.OWN} if own else set()
    assert engines_of(config) == engines
    held = {
        one for role in roles_of(config, "prod", failback=True, engines=engines_of(config)) for one in role.privileges
    }
    assert ("Global.DisableMethods" in held) is vddk
    assert "VirtualMachine.Provisioning.DiskRandomRead" in held


def govc_lines(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "vrepl.toml").write_text(EXAMPLE)
    call = ["--config", str(tmp_path / "vrepl.toml"), "config", "role"]
    shown = CliRunner().invoke(main, [*call, "prod", "--as", "govc"])
    assert shown.exit_code == 0, shown.output
    assert "govc role.create vrepl-source \\\n  Cryptographer.Access \\\n" in shown.stdout
    document = json.loads(CliRunner().invoke(main, [*call, "prod", "--json"]).stdout)
    assert [role["name"] for role in document["roles"]] == ["vrepl-source", "vrepl-source-proxy"]
    assert {"privilege": "Datastore.Browse", "on": "datastore", "why": "find the disks' files"} in document["roles"][0][
        "needs"
    ]
    assert CliRunner().invoke(main, [*call, "prdo"]).exit_code == 10
