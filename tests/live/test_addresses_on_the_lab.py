"""Guests get their addresses at a failover, on the lab: from the target alone, in tests, undone, and home again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.target_alone import forget_all_but_the_target
from tests.support.vrepl_runs import VREPL, Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

DISK = (DiskSpec(2 * MIB, content="random", fill=0.5),)
POLICY = """
[jobs.demo.failover]
networks = {{ "VM Network" = "isolated" }}
addresses = [
    {{ old = "{lan}/32", new = "10.2.0.5/24", gateway = "10.2.0.1", dns = "10.2.0.53" }},
    {{ network = "isolated", new = "dhcp" }},
    {{ vms = "web-01", network = "VM Network", new = "fd00:2::5/64", gateway = "fd00:2::1" }},
]
domain = "dr.example.com"
address_wait = "20s"
"""


class Addressed(Runs):
    """One guest with two adapters, of which a run has told the addresses."""

    def __init__(self, lab: Lab, scratch: Path) -> None:
        super().__init__(lab, scratch)
        lab.set("boot_ms=20")
        self.had = self.shown("prod", "web-01")
        lab.config_file.write_text(lab.config_file.read_text() + POLICY.format(lan=self.had[0]))
        lab.config_file.chmod(0o600)

    def shown(self, site: str, vm: str) -> list[str]:
        with plain_api.session(self.lab, site) as instance:
            guest = plain_api.vm_named(instance, vm).guest
            return [address for card in guest.net for address in card.ipAddress]

    def networks(self, vm: str) -> list[str]:
        with plain_api.session(self.lab, "dr") as instance:
            return [card.network for card in plain_api.vm_named(instance, vm).guest.net]

    def failover(self, *arguments: str, code: int = 0) -> Any:
        [vm] = self.json("failover", *arguments, code=code)["vms"]
        return vm


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Addressed:
    vm = VmSpec("web-01", disks=DISK, networks=("VM Network", "isolated"))
    return Addressed(start_lab(LabSpec.of_vms(vm, job_vms=["web-01"])), tmp_path)


def test_from_the_target_alone_the_guest_gets_its_addresses(runs: Addressed, tmp_path: Path) -> None:
    runs.replicate()
    dry = runs.failover("start", "web-01", "--source-is-down", "--dry-run")
    assert [one["after"] for one in dry["addresses"]["adapters"]] == ["10.2.0.5/24, fd00:2::5/64", "dhcp"]
    assert dry["networks"] == ["Network adapter 1: VM Network -> isolated"]
    assert dry["state"] == "ready"
    os.kill(int(runs.lab.status()["prod"]["pid"]), signal.SIGKILL)
    at_target = [*forget_all_but_the_target(runs.lab, tmp_path), "--yes", "--json"]

    def typed(*arguments: str) -> Any:
        done = subprocess.run([*VREPL, *arguments, *at_target], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        [vm] = json.loads(done.stdout)["vms"]
        return vm

    started = typed("failover", "start", "web-01")
    assert (started["state"], started["addresses"]["result"]) == ("failed-over", "set"), started
    assert started["addresses"]["reported"][:2] == ["10.2.0.5", "fd00:2::5"]
    assert runs.shown("dr", "web-01-replica")[0] == "10.2.0.5"
    assert runs.networks("web-01-replica") == ["isolated", "isolated"]
    with plain_api.session(runs.lab, "dr") as instance:
        (stack,) = plain_api.vm_named(instance, "web-01-replica").guest.ipStack
        assert list(stack.dnsConfig.ipAddress) == ["10.2.0.53"]
        assert (stack.dnsConfig.hostName, stack.dnsConfig.domainName) == ("web-01", "dr.example.com")
        assert [route.gateway.ipAddress for route in stack.ipRouteConfig.ipRoute] == ["10.2.0.1", "fd00:2::1"]
    assert typed("failover", "undo", "web-01")["state"] == "ready"
    assert runs.networks("web-01-replica") == []
    with plain_api.session(runs.lab, "dr") as instance:
        vm = plain_api.vm_named(instance, "web-01-replica")
        cards: list[Any] = [d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualEthernetCard)]
        assert sorted(card.backing.deviceName for card in cards) == ["VM Network", "isolated"]
        assert not vm.config.tools.pendingCustomization


@pytest.mark.slow
def test_in_a_test_too_and_home_with_those_that_it_had(runs: Addressed) -> None:
    runs.replicate()
    tried = runs.failover("test", "web-01", "--timeout", "20s")
    assert (tried["result"], tried["addresses"]["result"]) == ("success", "set"), tried
    assert runs.failover("start", "web-01", "--planned", "--yes")["addresses"]["result"] == "set"
    runs.lab.write_random("dr", "web-01-replica", 0, 0, MIB, "what the guest did")
    home = runs.json("failback", "start", "web-01", "--yes")["vms"][0]
    assert (home["result"], home["addresses"]["result"]) == ("success", "set"), home
    assert runs.shown("prod", "web-01") == runs.had


@pytest.mark.long
def test_what_customisation_comes_to_is_said(runs: Addressed) -> None:
    runs.replicate()
    runs.lab.set("dr.customize_needs_tools=yes")
    dry = runs.failover("start", "web-01", "--source-is-down", "--dry-run")
    assert "it boots twice, once without networks" in dry["addresses"]["warnings"][-1]
    tried = runs.failover("test", "web-01", "--timeout", "20s")
    assert (tried["result"], tried["addresses"]["result"]) == ("success", "set"), tried
    assert any("it ran once without networks" in note for note in tried["notes"])
    introduced = runs.failover("start", "web-01", "--source-is-down", "--yes")
    assert (introduced["state"], introduced["addresses"]["result"]) == ("failed-over", "set"), introduced
    assert any("it ran once without networks" in note for note in introduced["notes"])
    assert runs.shown("dr", "web-01-replica")[0] == "10.2.0.5"
    with plain_api.session(runs.lab, "dr") as instance:
        assert all(card.connected for card in plain_api.vm_named(instance, "web-01-replica").guest.net)
    runs.failover("undo", "web-01", "--yes")
    runs.lab.set("dr.customize_needs_tools=no", "dr.guest=web-01*,customize=fail")
    failed = runs.failover("start", "web-01", "--source-is-down", "--yes")
    assert (failed["result"], failed["addresses"]["result"]) == ("success", "failed"), failed
    assert "customizationDisabled" in failed["addresses"]["reason"]
    runs.failover("undo", "web-01", "--yes")
    runs.lab.set("dr.guest=web-01*,customize=hang")
    text = runs.lab.config_file.read_text()
    runs.lab.config_file.write_text(text.replace('"20s"', '"2s"\non_address_failure = "stop"'))
    hung = runs.failover("start", "web-01", "--source-is-down", "--yes", code=1)
    assert (hung["state"], hung["addresses"]["result"]) == ("failed-over", "unconfirmed"), hung
    assert "it reports no address after 2 s" in hung["error"]


@pytest.mark.slow
def test_a_rule_moves_every_guest_of_a_job_and_windows_too(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    vms = (VmSpec("web-01", disks=DISK), VmSpec("win-01", disks=DISK, guest_id="windows2019srv_64Guest"))
    lab = start_lab(LabSpec.of_vms(*vms, job_vms=["web-01", "win-01"]))
    lab.set("boot_ms=20")
    policy = """
[jobs.demo.failover]
addresses = ["10.0.0.0/8 -> 11.0.0.0/8"]
domain = "dr.example.com"
sysprep = { time_zone = 85 }
"""
    lab.config_file.write_text(lab.config_file.read_text() + policy)
    lab.config_file.chmod(0o600)
    runs = Runs(lab, tmp_path)
    runs.json("replicate", "demo")
    rows = runs.json("failover", "start", "--all", "--source-is-down", "--yes")["vms"]
    assert [(row["name"], row["addresses"]["result"]) for row in rows] == [("web-01", "set"), ("win-01", "set")], rows
    for row in rows:
        with plain_api.session(lab) as instance:
            before = plain_api.vm_named(instance, row["name"]).guest.ipAddress
        with plain_api.session(lab, "dr") as instance:
            after = plain_api.vm_named(instance, row["replica"]).guest.ipAddress
        assert (before[:3], after) == ("10.", f"11.{before[3:]}")
    assert any("new SID" in note for note in rows[1]["notes"])


@pytest.mark.long
@pytest.mark.parametrize("known", [True, False], ids=["known Tools", "unknown Tools"])
def test_killed_between_the_gift_and_the_power_on_the_same_command_goes_on(runs: Addressed, known: bool) -> None:
    point = runs.replicate()["restore_point"]
    sealed = runs.restore_point(point)
    runs.lab.set("dr.power_on_ms=3000", f"dr.customize_needs_tools={'no' if known else 'yes'}")

    def reached() -> bool:
        with plain_api.session(runs.lab, "dr") as instance:
            vm = plain_api.vm_named(instance, "web-01-replica")
            if known:
                return bool(vm.config.tools and vm.config.tools.pendingCustomization)
            return bool(vm.runtime.powerState == "poweredOn")

    runs.kill_when(reached, "failover", "start", "web-01", "--source-is-down", "--yes")
    runs.lab.set("dr.power_on_ms=0")
    done = runs.failover("start", "web-01", "--source-is-down", "--yes")
    assert (done["state"], done["addresses"]["result"]) == ("failed-over", "set"), json.dumps(done)
    assert runs.shown("dr", "web-01-replica")[:2] == ["10.2.0.5", "fd00:2::5"]
    assert runs.failover("undo", "web-01", "--yes")["state"] == "ready"
    assert runs.restore_point(point) == sealed
