"""A failover gives a guest the addresses that its job's rules say, before its first boot, and sees that it has them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.addressed_world import GUEST, RULES, SET, fail_over, make_world, texts
from tests.support.memory_site import MemorySite, MemoryVm
from tests.support.world import World, source
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover import introduction, readdressing
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.preview import preview
from vrepl.engine.failover.replicas import choose
from vrepl.errors import PermissionDeniedError, TransientVsphereError, VsphereError
from vrepl.model import PowerState
from vrepl.model.addresses import (
    AddressPolicy,
    AddressRule,
    FailoverPolicy,
    OnAddressFailure,
)
from vrepl.model.failover import Start, Undo, Wish
from vrepl.report.addresses import AddressResult
from vrepl.report.failover_preview import show_preview
from vrepl.report.model import Result
from vrepl.transport.hooks import SimulatedKill


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readdressing, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(introduction, "LOOK_EVERY", 0.01)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "repository")


def test_the_rules_beside_the_replica_are_enough(world: World) -> None:
    world.source.vms.clear()
    done = fail_over(world, Start())
    assert (done.result, done.state) == (Result.SUCCESS, "failed-over"), done.error
    assert texts(world.replica().guest) == SET
    assert done.addresses is not None
    found = done.to_json()["addresses"]
    assert found["result"] == "set"
    assert found["adapters"] == [
        {"adapter": "Network adapter 1", "before": "10.1.7.5/24", "after": "10.2.7.5/24", "changes": True}
    ]
    assert found["reported"] == ["10.2.7.5"]
    assert found["seconds"] >= 0
    assert done.addresses.lines == ["Network adapter 1: 10.1.7.5/24 -> 10.2.7.5/24 (reported after 0 s)"]


def test_undo_takes_them_away_again_and_harms_no_restore_point(world: World) -> None:
    points = world.restore_point_contents()
    fail_over(world, Start())
    assert fail_over(world, Undo()).state == "ready"
    assert world.replica().guest is None, "as it was at the restore point"
    assert world.replica().given is None
    assert world.restore_point_contents() == points
    assert world.run_vm().result is Result.SUCCESS


def test_without_rules_nothing_is_asked_and_nothing_reported(tmp_path: Path) -> None:
    world = make_world(tmp_path / "repository", AddressPolicy())
    world.target.calls.clear()
    done = fail_over(world, Start())
    assert done.addresses is None
    assert "addresses" not in done.to_json()
    assert not [call for call in world.target.calls if "address" in call]


def test_a_configuration_that_is_there_comes_first(world: World) -> None:
    newer = FailoverPolicy({}, AddressPolicy((AddressRule("10.3.0.0/16", "10.1.0.0/16"),), wait=5))
    fail_over(world, Start(), newer)
    assert texts(world.replica().guest) == ["10.3.7.5/24"]


def unknown(site: MemorySite) -> MemoryVm:
    """The replica never ran at its site, which knows nothing of its Tools."""
    vm = next(vm for vm in site.vms.values() if vm.name == "web-01-replica")
    vm.tools_known = False
    return vm


def refusing(site: MemorySite) -> None:
    def give(*_: object) -> bool:
        raise VsphereError("the guest cannot be customised", fault="CustomizationFault")

    site.give_addresses = give  # type: ignore


def forbid_checks(*_: object) -> None:
    raise PermissionDeniedError("VirtualMachine.Provisioning.Customize is missing", hint="grant it")


def forbidding(site: MemorySite) -> None:
    def give(*_: object) -> bool:
        raise PermissionDeniedError("VirtualMachine.Provisioning.Customize is missing", hint="grant it")

    site.give_addresses = give  # type: ignore


def standalone(site: MemorySite) -> None:
    site.is_vcenter = False


@pytest.mark.parametrize(
    ("obstacle", "says"),
    [
        (refusing, "cannot be customised"),
        (forbidding, "VirtualMachine.Provisioning.Customize is missing (grant it)"),
        (standalone, "a standalone ESXi host, which customises no guests"),
    ],
)
def test_what_cannot_be_set_is_said_and_the_guest_starts(
    world: World, obstacle: Callable[[MemorySite], None], says: str
) -> None:
    obstacle(world.target)
    done = fail_over(world, Start())
    assert (done.result, done.state) == (Result.SUCCESS, "failed-over")
    assert done.addresses is not None
    assert done.addresses.result is AddressResult.KEPT
    assert [note for note in done.notes if "it keeps its addresses" in note and says in note], done.notes
    assert world.replica().power is PowerState.ON


@pytest.mark.parametrize("obstacle", [refusing, standalone])
def test_or_it_stays_off_where_the_job_says_so_until_it_can(
    tmp_path: Path, obstacle: Callable[[MemorySite], None]
) -> None:
    world = make_world(tmp_path / "repository", replace(RULES, on_failure=OnAddressFailure.STOP))
    obstacle(world.target)
    done = fail_over(world, Start())
    assert (done.result, done.state) == (Result.SKIPPED, "failing-over")
    assert done.error is not None
    assert "wants it to stay off" in done.error.message
    assert world.replica().power is PowerState.OFF
    world.target.is_vcenter = True
    world.target.__dict__.pop("give_addresses", None)
    assert fail_over(world, Start()).state == "failed-over"
    assert texts(world.replica().guest) == SET


@pytest.mark.parametrize(
    ("end", "result", "says"),
    [
        ("customizationDisabled", AddressResult.FAILED, "its guest could not set them: customizationDisabled"),
        (None, AddressResult.UNCONFIRMED, "it reports no address after"),
    ],
)
def test_a_guest_that_does_not_get_them_is_named(
    tmp_path: Path, end: str | None, result: AddressResult, says: str
) -> None:
    world = make_world(tmp_path / "1", replace(RULES, wait=0.05))
    world.target.customisation = lambda vm: end
    done = fail_over(world, Start())
    assert (done.result, done.state) == (Result.SUCCESS, "failed-over")
    assert done.addresses is not None
    assert done.addresses.result is result
    assert [note for note in done.notes if says in note], done.notes
    strict = make_world(tmp_path / "2", replace(RULES, wait=0.05, on_failure=OnAddressFailure.STOP))
    strict.target.customisation = lambda vm: end
    failed = fail_over(strict, Start())
    assert (failed.result, failed.state) == (Result.FAILED, "failed-over")
    assert failed.error is not None
    assert says in failed.error.message


def test_a_vcenter_that_does_not_answer_for_once_is_asked_again(world: World) -> None:
    give, tries = world.target.give_addresses, []

    def now_and_then(*arguments: object) -> bool:
        tries.append(1)
        if len(tries) == 1:
            raise TransientVsphereError("busy")
        return give(*arguments)  # type: ignore[arg-type]

    world.target.give_addresses = now_and_then  # type: ignore
    fail_over(world, Start())
    assert texts(world.replica().guest) == SET


def test_all_are_powered_on_before_any_is_waited_for(world: World) -> None:
    asked: list[str] = []
    world.target.before_call = asked.append
    failovers = Failovers(FailoverContext(world.engine().services, world.target), None)
    report = failovers.run(choose(failovers.find(), [], every=True), lambda _: Start())
    assert report.vms[0].addresses is not None
    assert asked.index("power_on") < asked.index("reported_addresses")


def test_a_guest_whose_tools_the_site_does_not_know_runs_once_without_networks(world: World) -> None:
    points = world.restore_point_contents()
    unknown(world.target)
    done = fail_over(world, Start())
    assert (done.result, done.state) == (Result.SUCCESS, "failed-over"), done.error
    assert texts(world.replica().guest) == SET
    assert world.target.powered_on == [("web-01-replica", (False,)), ("web-01-replica", (True,))]
    assert "it ran once without networks, so that vCenter knows of its VMware Tools" in done.notes
    assert fail_over(world, Undo()).state == "ready"
    assert world.restore_point_contents() == points
    assert world.run_vm().result is Result.SUCCESS


def test_where_its_tools_do_not_come_up_it_keeps_its_addresses(tmp_path: Path) -> None:
    world = make_world(tmp_path / "repository", replace(RULES, wait=0.05))
    replica = unknown(world.target)
    replica.tools_running = False
    done = fail_over(world, Start())
    assert (done.result, done.state) == (Result.SUCCESS, "failed-over"), done.error
    assert done.addresses is not None
    assert done.addresses.result is AddressResult.KEPT
    assert any("did not come up" in note for note in done.notes)
    assert world.target.powered_on == [("web-01-replica", (False,)), ("web-01-replica", (True,))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wishes", "known"),
    [([Start()], True), ([Start()], False), ([Start(), Undo()], False)],
    ids=["start", "start, unknown Tools", "undo, unknown Tools"],
)
def test_killed_before_and_after_every_call_the_guest_has_its_addresses(
    tmp_path: Path, wishes: list[Wish], known: bool
) -> None:
    seen = set()
    death = 0
    while True:
        death += 1
        world = make_world(tmp_path / f"repository-{death}")
        points = world.restore_point_contents()
        world.replica().tools_known = known
        left = death
        where = ""

        def kill_at(at: str) -> bool:
            nonlocal left, where
            left -= 1
            where = at
            return left == 0

        died = False
        world.kill_at = kill_at
        for wish in wishes:
            try:
                done = fail_over(world, wish)
            except SimulatedKill:
                died = True
                seen.add(where)
                done = fail_over(world, wish)
        world.kill_at = lambda _: False
        assert done.result is Result.SUCCESS, done.error
        assert world.restore_point_contents() == points
        connected = [one.connected for one in world.replica().hardware.network_adapters]
        assert connected == [True], where
        if len(wishes) == 1:
            assert world.target.powered_on[-1] == ("web-01-replica", (True,))
            assert done.addresses is not None
            assert done.addresses.result is AddressResult.SET, where
            assert (done.state, texts(world.replica().guest)) == ("failed-over", SET)
        else:
            assert (done.state, world.replica().guest, world.replica().given) == ("ready", None, None)
        if not died:
            break
    assert {"before dr give_addresses", "after dr give_addresses", "before dr reported_addresses"} <= seen
    assert ("after dr set_connected" in seen) is not known


def test_a_power_on_of_a_dead_process_that_ends_only_now_keeps_what_that_one_gave(world: World) -> None:
    world.kill_at = lambda at: at == "before dr power_on"
    with pytest.raises(SimulatedKill):
        fail_over(world, Start())
    world.kill_at = lambda _: False
    world.dead = False
    before, target = world.target.before_call, world.target

    def late(method: str) -> None:
        before(method)
        if method == "give_addresses":
            target.before_call = before
            target.power_on(world.replica().ref)

    target.before_call = late
    done = fail_over(world, Start())
    assert done.addresses is not None
    assert (done.state, done.addresses.result) == ("failed-over", AddressResult.SET), done.notes
    assert texts(world.replica().guest) == SET


def test_given_again_the_command_says_what_the_guest_reports_now(world: World) -> None:
    fail_over(world, Start())
    again = fail_over(world, Start())
    assert again.addresses is not None
    assert (again.addresses.result, again.addresses.reported) == (AddressResult.SET, ("10.2.7.5",))
    by_hand = replace(GUEST.adapters[0], addresses=("10.2.7.6/24",))
    world.replica().guest = replace(GUEST, adapters=(by_hand,))
    again = fail_over(world, Start())
    assert again.addresses is not None
    assert again.addresses.result is AddressResult.UNCONFIRMED
    assert again.addresses.reason == "it reports 10.2.7.6"


def test_one_that_was_powered_off_since_runs_again_with_what_it_has(world: World) -> None:
    fail_over(world, Start())
    by_hand = replace(GUEST.adapters[0], addresses=("10.2.7.6/24",))
    world.replica().guest, world.replica().power = replace(GUEST, adapters=(by_hand,)), PowerState.OFF
    again = fail_over(world, Start(), FailoverPolicy({}, replace(RULES, wait=0.05)))
    assert (again.result, again.state) == (Result.SUCCESS, "failed-over"), again.error
    assert texts(world.replica().guest) == ["10.2.7.6/24"]


def test_the_source_vm_is_untouched(world: World) -> None:
    fail_over(world, Start())
    vm: MemoryVm = source(world)
    assert vm.guest == GUEST


def test_a_look_beforehand_shows_what_would_change_and_changes_nothing(world: World) -> None:
    failovers = Failovers(FailoverContext(world.engine().services, world.target), None)
    failovers.policy_of = lambda _: FailoverPolicy({"lan": "dr-lan"}, RULES)
    before = dict(world.replica().files)
    report = preview(failovers, choose(failovers.find(), ["web-01"]), lambda _: Start())
    [shown] = report.to_json()["vms"]
    assert report.exit_code == 0
    assert (shown["state"], shown["restore_point"]) == ("ready", max(world.restore_point_contents()))
    assert shown["networks"] == ["Network adapter 1: lan -> dr-lan"]
    assert (shown["addresses"]["result"], shown["addresses"]["adapters"][0]["after"]) == ("planned", "10.2.7.5/24")
    assert world.replica().files == before
    assert (world.replica().given, world.replica().power) == (None, PowerState.OFF)
    unknown(world.target)
    [shown] = preview(failovers, choose(failovers.find(), ["web-01"]), lambda _: Start()).to_json()["vms"]
    assert shown["addresses"]["result"] == "planned"
    assert "it boots twice, once without networks" in shown["addresses"]["warnings"][-1]
    world.target.check_addresses = forbid_checks  # type: ignore
    [shown] = preview(failovers, choose(failovers.find(), ["web-01"]), lambda _: Start()).to_json()["vms"]
    assert (shown["addresses"]["result"], shown["error"]) == ("kept", None)
    assert "Customize is missing" in shown["addresses"]["reason"]
    failovers.source_runs = lambda _: True
    report = preview(failovers, choose(failovers.find(), ["web-01"]), lambda _: Start())
    assert report.exit_code == 1
    assert "still runs" in report.to_json()["vms"][0]["error"]


def test_the_table_says_what_would_change(world: World) -> None:
    failovers = Failovers(FailoverContext(world.engine().services, world.target), None)
    report = preview(failovers, choose(failovers.find(), ["web-01"]), lambda _: Start())
    out = Console(file=io.StringIO(), width=200)
    show_preview(out, report)
    assert isinstance(out.file, io.StringIO)
    assert "web-01: Network adapter 1: 10.1.7.5/24 -> 10.2.7.5/24\n" in out.file.getvalue()
