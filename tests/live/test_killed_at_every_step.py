"""Every command of a failover and of the way home, SIGKILLed at each of its steps on the lab, and given again."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.killed_at import A_MOMENT, Estate, Looked
from tests.support.vrepl_runs import GRAIN
from vrepl.engine.failback.driver import WORDS as FAILBACK_WORDS
from vrepl.engine.failover.driver import WORDS as FAILOVER_WORDS
from vrepl.planner import failback, failover
from vrepl_lab.lab import Lab
from vrepl_lab.spec import LabSpec

MakeEstate = Callable[[int], Estate]
WORDS = {**FAILOVER_WORDS, **FAILBACK_WORDS}
ON, OFF = "poweredOn", "poweredOff"

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(params=[0.0, A_MOMENT], ids=["as it begins", "in its middle"])
def make(request: pytest.FixtureRequest, start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> MakeEstate:
    """An estate of so many VMs, with two restore points each."""

    def made(count: int) -> Estate:
        estate = Estate.start(start_lab, tmp_path, count)
        estate.replicate()
        for vm in estate.names:
            estate.runs.lab.write_random("prod", vm, 0, GRAIN, GRAIN, f"{vm} once more")
        estate.replicate()
        estate.later = request.param
        return estate

    return made


def killed_at(estate: Estate, *acts: type[object]) -> None:
    """The planner answered these, and something was killed at each."""
    missing = {WORDS[act] for act in acts} - set(estate.told)
    assert not missing, f"nothing was killed at: {', '.join(sorted(missing))}"
    print(f"{len(estate.told)} deaths: {', '.join(estate.told)}")


def power_is_lost(estate: Estate) -> None:
    """Each original has written something that no run saw."""
    for vm in estate.names:
        estate.runs.lab.write_random("prod", vm, 0, 5 * GRAIN, GRAIN, f"{vm} lost with the site")
        estate.runs.lab.lose_power("prod", vm)


def failed_over(estate: Estate) -> None:
    power_is_lost(estate)
    estate.all("failover", "start")
    for vm in estate.names:
        estate.runs.lab.write_random("dr", f"{vm}-replica", 0, 7 * GRAIN, GRAIN, f"{vm} at the target")
        estate.runs.lab.write_random("dr", f"{vm}-replica", 1, GRAIN, GRAIN, f"{vm} at the target, too")


def failed_over_and_lost(estate: Estate) -> tuple[str, ...]:
    """The originals are gone; options that say where new ones are made."""
    failed_over(estate)
    with plain_api.session(estate.runs.lab, "prod") as instance:
        first = plain_api.vm_named(instance, estate.names[0])
        where = ("--datastore", first.datastore[0].name, "--host", first.runtime.host.name)
        for vm in estate.names:
            plain_api.wait(plain_api.vm_named(instance, vm).Destroy_Task())
    return where


def adapters(estate: Estate, name: str) -> list[bool]:
    """Of a VM of the target: whether each is connected at power-on."""
    with plain_api.session(estate.runs.lab, "dr") as instance:
        devices = plain_api.vm_named(instance, name).config.hardware.device
        cards = [one for one in devices if isinstance(one, vim.vm.device.VirtualEthernetCard)]
        return [card.connectable is not None and bool(card.connectable.startConnected) for card in cards]


def the_next_run_is_right(estate: Estate, vms: list[str]) -> None:
    for vm in vms:
        estate.runs.lab.write_random("prod", vm, 0, 9 * GRAIN, GRAIN, f"{vm} afterwards")
    reports = {one["name"]: one for one in estate.runs.json("replicate", "demo")["vms"]}
    for vm in vms:
        assert reports[vm]["result"] == "success", reports[vm]
        sealed = estate.images("dr", f"{vm}-replica", f"vrepl {reports[vm]['restore_point']}")
        assert sealed == estate.original(vm), vm


def test_start(make: MakeEstate) -> None:
    estate = make(10)
    power_is_lost(estate)

    def check(vm: str, before: Looked, _: Any) -> None:
        assert estate.points(vm) == before.points
        assert estate.replica(vm) == before.points[max(before.points)]
        assert estate.power(vm) == (OFF, ON)

    estate.die_everywhere(("failover", "start"), "failed-over", check)
    killed_at(estate, failover.StandOn, failover.PrepareGuest, failover.PowerOn)


def test_start_with_other_addresses(make: MakeEstate) -> None:
    """Each guest boots twice: once without networks, for vCenter to know of its VMware Tools."""
    estate = make(18)
    lab = estate.runs.lab
    rule = 'addresses = [{ old = "10.0.0.0/8", new = "11.0.0.0/8" }]'
    lab.config_file.write_text(
        f'{lab.config_file.read_text()}\n[jobs.demo.failover]\n{rule}\ndomain = "example.com"\naddress_wait = "20s"\n'
    )
    lab.set("dr.customize_needs_tools=yes", "guest=*,boot_ms=20")
    power_is_lost(estate)

    def check(vm: str, before: Looked, done: Any) -> None:
        assert estate.points(vm) == before.points
        assert estate.replica(vm) == before.points[max(before.points)]
        assert estate.power(vm) == (OFF, ON)
        assert done["addresses"]["result"] == "set", done["addresses"]
        assert all(address.startswith("11.") for address in done["addresses"]["reported"]), done
        assert all(adapters(estate, f"{vm}-replica")), "what it booted without is connected again"

    estate.die_everywhere(("failover", "start"), "failed-over", check)
    killed_at(estate, failover.StandOn, failover.PrepareGuest, failover.IntroduceGuest, failover.PowerOn)
    assert "set addresses" in estate.told


@pytest.mark.parametrize("keep", [(), ("--keep",)], ids=["thrown away", "kept"])
def test_undo(make: MakeEstate, keep: tuple[str, ...]) -> None:
    estate = make(14)
    failed_over(estate)
    undone: list[str] = []

    def check(vm: str, before: Looked, _: Any) -> None:
        assert estate.points(vm) == before.points
        assert estate.replica(vm) == before.points[max(before.points)]
        assert estate.power(vm) == (OFF, OFF)
        assert "failover-base" not in estate.snapshot_names("dr", f"{vm}-replica") or keep
        if keep:
            assert estate.images("dr", f"{vm}-replica", "vrepl-undone") == before.replica
        undone.append(vm)

    estate.die_everywhere(("failover", "undo", *keep), "ready", check)
    killed_at(estate, failover.RevertTo, failover.RemoveSnapshot)
    killed_at(estate, *((failover.ShutDownGuest, failover.KeepState) if keep else (failover.PowerOff,)))
    estate.all("failover", "undo")
    the_next_run_is_right(estate, undone)


def test_commit_and_reprotect(make: MakeEstate) -> None:
    estate = make(6)
    failed_over(estate)
    jobs: dict[str, str] = {}

    def check(vm: str, before: Looked, done: Any) -> None:
        assert estate.replica(vm) == before.replica
        assert estate.original(vm) == before.original
        assert estate.snapshot_names("dr", f"{vm}-replica") == []
        assert estate.power(vm) == (OFF, ON)
        [back] = done["reprotect"]
        assert tomllib.loads(back["toml"])["jobs"], "the same job is told again"
        jobs[vm] = back["toml"]

    estate.die_everywhere(("failover", "commit", "--reprotect"), "committed", check)
    killed_at(estate, failover.MergeSnapshots)
    vm = next(iter(jobs))
    config = estate.runs.lab.config_file
    config.write_text(f"{config.read_text()}\n{jobs[vm]}")
    [job] = tomllib.loads(jobs[vm])["jobs"]
    [report] = estate.runs.json("replicate", job, "--map", f"{vm}-replica={vm}")["vms"]
    assert estate.images("prod", vm, f"vrepl {report['restore_point']}") == estate.replica(vm)


@pytest.mark.timeout(7200)
def test_planned_start(make: MakeEstate) -> None:
    """Two runs, the shutdown and the failover: each of their steps is one to die at."""
    estate = make(60)
    for vm in estate.names:
        estate.runs.lab.write_random("prod", vm, 0, 4 * GRAIN, GRAIN, f"{vm} before it is shut down")

    def check(vm: str, before: Looked, done: Any) -> None:
        after = estate.points(vm)
        assert before.points.items() <= after.items()
        assert after[f"vrepl {done['restore_point']}"] == estate.replica(vm) == estate.original(vm)
        assert estate.power(vm) == (OFF, ON)
        assert estate.snapshot_names("prod", vm) == []

    estate.die_everywhere(("failover", "start", "--planned"), "failed-over", check)
    killed_at(estate, failover.StandOn, failover.PrepareGuest, failover.PowerOn)
    assert "shut down the source's guest" in estate.told


def test_failback_start(make: MakeEstate) -> None:
    estate = make(30)
    failed_over(estate)

    def check(vm: str, before: Looked, _: Any) -> None:
        assert estate.points(vm) == before.points
        assert estate.original(vm) == estate.replica(vm)
        assert estate.power(vm) == (ON, OFF)
        assert not any(one.startswith("vrepl-source-") for one in estate.snapshot_names("dr", f"{vm}-replica"))

    estate.die_everywhere(("failback", "start"), "failing-back", check, goes_on=True)
    killed_at(estate, failback.SnapshotOriginal, failback.Cross, failback.ShutDownReplica, failback.PowerOnOriginal)


def test_failback_where_the_original_is_gone(make: MakeEstate) -> None:
    estate = make(30)
    where = failed_over_and_lost(estate)

    def check(vm: str, before: Looked, _: Any) -> None:
        assert before.original == []
        assert estate.points(vm) == before.points
        assert estate.original(vm) == estate.replica(vm) != []
        assert estate.power(vm) == (ON, OFF)
        assert sorted(estate.vm_names("prod") & set(estate.names)) == made
        assert not any(one.startswith("vrepl-source-") for one in estate.snapshot_names("dr", f"{vm}-replica"))

    made: list[str] = []

    def check_and_count(vm: str, before: Looked, done: Any) -> None:
        made.append(vm)
        check(vm, before, done)

    estate.die_everywhere(("failback", "start", "--new", *where), "failing-back", check_and_count, goes_on=True)
    killed_at(estate, failback.MakeOriginal, failback.Cross, failback.ShutDownReplica, failback.PowerOnOriginal)


def test_failback_undo_of_a_new_vm(make: MakeEstate) -> None:
    estate = make(12)
    where = failed_over_and_lost(estate)
    estate.all("failback", "start", "--new", *where)

    def check(vm: str, before: Looked, _: Any) -> None:
        assert estate.points(vm) == before.points
        assert estate.replica(vm) == before.replica
        assert estate._power("dr", f"{vm}-replica") == ON
        assert vm not in estate.vm_names("prod")

    estate.die_everywhere(("failback", "undo"), "failed-over", check)
    killed_at(estate, failback.PowerOffOriginal, failback.DestroyOriginal, failback.PowerOnReplica)


def test_failback_undo(make: MakeEstate) -> None:
    estate = make(14)
    failed_over(estate)
    originals = {vm: estate.original(vm) for vm in estate.names}
    estate.all("failback", "start")

    def check(vm: str, before: Looked, _: Any) -> None:
        assert estate.points(vm) == before.points
        assert estate.original(vm) == originals[vm]
        assert estate.replica(vm) == before.replica
        assert estate.power(vm) == (OFF, ON)
        assert estate.snapshot_names("prod", vm) == []

    estate.die_everywhere(("failback", "undo"), "failed-over", check)
    killed_at(estate, failback.PowerOffOriginal, failback.RevertOriginal, failback.PowerOnReplica)


def test_failback_commit(make: MakeEstate) -> None:
    estate = make(16)
    failed_over(estate)
    estate.all("failback", "start")
    home: list[str] = []

    def check(vm: str, before: Looked, done: Any) -> None:
        after = estate.points(vm)
        assert before.points.items() <= after.items()
        [home_again] = set(after) - set(before.points)
        assert done["restore_point"] == home_again.removeprefix("vrepl "), "also where it was committed already"
        assert after[home_again] == before.replica == estate.original(vm)
        assert estate.power(vm) == (ON, OFF)
        assert estate.snapshot_names("prod", vm) == []
        home.append(vm)

    estate.die_everywhere(("failback", "commit"), "ready", check)
    killed_at(
        estate,
        failback.RemoveUndoSnapshot,
        failback.RemoveReplicaSnapshot,
        failback.ResetTracking,
        failback.SealReplica,
    )
    estate.all("failback", "commit")
    the_next_run_is_right(estate, home)


def test_a_test_and_its_end(make: MakeEstate) -> None:
    estate = make(16)
    networks = port_groups(estate)

    def gone(vm: str, before: Looked, _: Any) -> None:
        assert f"{vm}-replica-test" not in estate.vm_names("dr")
        assert estate.look(vm) == before
        assert estate.power(vm) == (ON, OFF)

    def tested(vm: str, before: Looked, done: Any) -> None:
        assert done["test"]["passed"]
        gone(vm, before, done)

    assert estate.die_everywhere(("failover", "test", "run"), "ready", tested) > 5
    assert {"announce the test", "clone", "power on", "check"} <= set(estate.told)
    assert port_groups(estate) == networks
    for vm in estate.names[:4]:
        estate.one(vm, "failover", "test", "run", "--keep")
    assert estate.die_everywhere(("failover", "test", "stop"), "ready", gone) >= 1
    estate.runs.json("failover", "test", "stop", "--all")
    assert port_groups(estate) == networks
    the_next_run_is_right(estate, list(estate.names))


def port_groups(estate: Estate) -> set[tuple[str, str]]:
    """By host."""
    with plain_api.session(estate.runs.lab, "dr") as instance:
        content = instance.content
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.HostSystem], True)
        return {
            (host.name, group.spec.name)
            for host in view.view
            for group in host.configManager.networkSystem.networkInfo.portgroup
        }
