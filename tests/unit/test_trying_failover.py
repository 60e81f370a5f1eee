"""Tests of failovers: on a clone, which no run destroys, and of which nothing is left."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.support.memory_site import MemoryVm
from tests.support.world import World, folder_of, source
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.replicas import choose
from vrepl.engine.failover.testing import FailoverTests
from vrepl.engine.retirement import retire
from vrepl.errors import NotReadyError
from vrepl.extents import GRAIN
from vrepl.model import NetworkAdapter, PowerState
from vrepl.model.failover import Commit, Start, Undo, Wish
from vrepl.model.failover_tests import TestWish
from vrepl.model.plans import HeartbeatGate, PortGate, ScriptGate, parse_gate
from vrepl.report.failover import FailoverVm
from vrepl.report.model import Result
from vrepl.repository.commit_record import read_mark
from vrepl.repository.failover import read_tests
from vrepl.repository.rebuild import FoundReplica, rebuild
from vrepl.repository.store import Repository
from vrepl.transport.hooks import SimulatedKill

ADAPTER = NetworkAdapter(4000, "Network adapter 1", "vmxnet3", "VM Network", "00:50:56:00:00:01", False)
DEAD: set[str] = set()
NUMBERS = itertools.count(1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "repository")


def make_world(folder: Path, *, retention: int = 3, runs: int = 3) -> World:
    world = World(folder, retention=retention)
    vm = world.source.add_vm("web-01", [4 * GRAIN])
    vm.hardware = replace(vm.hardware, network_adapters=(ADAPTER,))
    for number in range(runs):
        world.source.guest_write(vm, 0, (number % 3) * GRAIN, bytes([number + 1]) * GRAIN)
        assert world.run_vm().result is Result.SUCCESS
    return world


@dataclass
class Probe:
    """Answers as it is told to."""

    answering: set[tuple[str, int]] = field(default_factory=set)
    status: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    def connects(self, address: str, port: int) -> bool:
        return (address, port) in self.answering

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
        self.environment = environment
        return self.status, f"{command[0]} said so"


def a_command(world: World, probe: Probe | None = None, *, elsewhere: bool = False) -> FailoverTests:
    """Of a new process; `elsewhere`: of another machine, without this one's repository."""
    if elsewhere:
        services = World(world.folder.with_name("elsewhere")).engine().services
        repository = None
    else:
        services = world.engine().services
        repository = services.repository
    owner = f"host/{next(NUMBERS)}"
    made = FailoverTests(services, world.target, repository, probe or Probe(), owner, DEAD.__contains__, look_every=0)
    made.id = f"{next(NUMBERS):06x}"
    return made


def run_test(
    world: World, wish: TestWish | None = None, probe: Probe | None = None, *, elsewhere: bool = False
) -> FailoverVm:
    tests = a_command(world, probe, elsewhere=elsewhere)
    try:
        [vm] = tests.run(choose(tests.find(), ["web-01"]), wish or TestWish()).vms
    except SimulatedKill:
        DEAD.add(tests.owner)
        raise
    return vm


def stop(world: World) -> FailoverVm:
    tests = a_command(world)
    [vm] = tests.stop(choose(tests.find(), ["web-01"])).vms
    return vm


def failover(world: World, wish: Wish) -> FailoverVm:
    engine = world.engine()
    failovers = Failovers(FailoverContext(engine.services, world.target), engine.services.repository)
    return failovers.run_one(choose(failovers.find(), ["web-01"])[0], wish)


def clones(world: World) -> list[MemoryVm]:
    return [vm for vm in world.target.vms.values() if vm.stands_on is not None]


def contents(vm: MemoryVm) -> list[bytes]:
    return [disk.disk.content() for disk in vm.disks]


def nothing_is_left(world: World) -> None:
    assert clones(world) == []
    assert world.target.isolated_networks == set()


def test_a_test_runs_a_copy_of_the_restore_point_isolated_and_leaves_nothing(world: World) -> None:
    points = world.restore_point_contents()
    older = sorted(points)[1]
    seen: list[object] = []

    def look(method: str) -> None:
        if method == "guest_state":
            [clone] = clones(world)
            networks = {one.network for one in clone.hardware.network_adapters}
            assert {("esx-1", name) for name in networks} == world.target.isolated_networks
            assert not any(key.startswith(("vrepl.repository", "vrepl.source")) for key in clone.extra_config)
            seen.append(contents(clone))

    world.target.before_call = look
    done = run_test(world, TestWish(older))
    assert (done.result, done.state, done.restore_point) == (Result.SUCCESS, "ready", older), done.error
    assert seen[0] == points[older]
    assert done.test is not None
    assert done.test.passed
    assert done.test.seconds_to_service is not None
    nothing_is_left(world)
    assert world.restore_point_contents() == points
    assert world.replica().power is PowerState.OFF
    told = read_tests(folder_of(world))
    assert told is not None
    assert told.last is not None
    assert (told.standing, told.last.passed, told.last.restore_point) == (None, True, older)


def test_checks_ask_for_heartbeat_port_and_script_and_say_what_was_missing(world: World) -> None:
    probe = Probe(status=7)
    wish = TestWish(checks=(HeartbeatGate(5), PortGate(443, 0.0), ScriptGate(("curl", "-f"), 0.0)))
    failed = run_test(world, wish, probe)
    assert failed.result is Result.FAILED
    assert failed.error is not None
    assert "port:443: its guest reports no address" in failed.error.message
    assert "curl ended with 7: curl said so" in failed.error.message
    assert failed.test is not None
    assert [one["passed"] for one in failed.test.checks] == [True, False, False]
    assert probe.environment["VREPL_VM"] == "web-01"
    nothing_is_left(world)
    told = read_tests(folder_of(world))
    assert told is not None
    assert told.last is not None
    assert (told.last.passed, told.last.seconds) == (False, None)


def test_a_mapped_network_is_used_and_none_is_made(world: World) -> None:
    seen: list[str] = []

    def look(method: str) -> None:
        if method == "power_on":
            seen.extend(one.network for one in clones(world)[0].hardware.network_adapters)

    world.target.before_call = look
    assert run_test(world, TestWish(network="test-lan")).result is Result.SUCCESS
    assert seen == ["test-lan"]
    assert "add_isolated_network" not in world.target.calls


def test_kept_it_stands_until_it_is_stopped_and_a_second_test_says_so(world: World) -> None:
    kept = run_test(world, TestWish(keep=True))
    assert kept.test is not None
    assert kept.test.kept
    [clone] = clones(world)
    assert clone.power is PowerState.ON
    second = run_test(world)
    assert second.result is Result.SKIPPED
    assert second.error is not None
    assert "is kept already" in second.error.message
    assert "vrepl failover test stop web-01" in (second.error.hint or "")
    assert clones(world) == [clone]
    assert stop(world).notes == ["thrown away: web-01-replica-test"]
    nothing_is_left(world)
    assert run_test(world).result is Result.SUCCESS


def test_a_repository_lost_while_a_copy_is_kept_is_rebuilt_from_the_replica_alone(world: World) -> None:
    run_test(world, TestWish(keep=True))
    [clone] = clones(world)
    [replica] = [vm for vm in world.target.vms.values() if vm is not clone]
    shutil.rmtree(world.folder)
    found = [
        FoundReplica(world.target.name, vm) for vm in world.target.list_vms() if read_mark(vm.extra_config) is not None
    ]
    [rebuilt] = rebuild(Repository.open(world.folder), found)
    assert (rebuilt.vm_name, rebuilt.problem) == (replica.name, "")
    world.repository = Repository.open(world.folder)
    assert world.run_vm().result is Result.SUCCESS
    assert clones(world) == [clone]
    stop(world)
    nothing_is_left(world)


@pytest.mark.slow
def test_of_two_tests_at_once_the_second_says_so_whenever_it_comes(tmp_path: Path) -> None:
    moment = 0
    both = 0
    while True:
        moment += 1
        world = make_world(tmp_path / f"repository-{moment}", runs=1)
        second: list[FailoverVm] = []
        left = moment

        def count(_method: str, world: World = world, second: list[FailoverVm] = second) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                second.append(run_test(world, TestWish(keep=True), elsewhere=True))

        world.target.before_call = count
        first = run_test(world)
        world.target.before_call = lambda _method: None
        if not second:
            break
        results = [first.result, second[0].result]
        assert Result.FAILED not in results, (first.error, second[0].error)
        passed = [one for one in (first, second[0]) if one.result is Result.SUCCESS]
        both += len(passed) == 2
        for one in (first, second[0]):
            if one.result is Result.SKIPPED:
                assert one.error is not None
                assert "test" in one.error.message
        assert passed, "one of them tests"
        if second[0].result is Result.SUCCESS:
            assert len(clones(world)) == 1, "what is kept stands"
            assert run_test(world).result is Result.SKIPPED, "and is known of"
            stop(world)
        nothing_is_left(world)
    assert moment > 10
    assert both < moment / 2


@pytest.mark.slow
def test_killed_at_every_call_the_next_test_throws_away_what_is_left(tmp_path: Path) -> None:
    death = 0
    died = True
    world = make_world(tmp_path / "repository", runs=2)
    points = world.restore_point_contents()
    while died:
        death += 1
        left = death

        def kill_at(_where: str) -> bool:
            nonlocal left
            left -= 1
            return left == 0

        world.kill_at = kill_at
        died = False
        try:
            run_test(world)
        except SimulatedKill:
            died = True
        world.kill_at = lambda _: False
        world.dead = False
        assert world.restore_point_contents() == points
        done = run_test(world)
        assert done.result is Result.SUCCESS, (death, done.error)
        nothing_is_left(world)
    assert death > 20


def at_each_call_of_a_run(folder: Path, retention: int, happens: Callable[[World], None]) -> list[World]:
    """Worlds after a run, before whose call of some number something happened elsewhere."""
    worlds: list[World] = []
    for moment in itertools.count(1):
        world = make_world(folder / str(moment), retention=retention, runs=3)
        world.source.guest_write(source(world), 0, 3 * GRAIN, b"\x55" * GRAIN)
        left = moment

        def count(_method: str, world: World = world) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                happens(world)

        for site in (world.source, world.target):
            site.before_call = count
        report = world.run_vm()
        for site in (world.source, world.target):
            site.before_call = lambda _method: None
        if left > 0:
            return worlds
        assert report.result is Result.SUCCESS, report.error
        worlds.append(world)
    return worlds


@pytest.mark.slow
@pytest.mark.parametrize("oldest", [True, False], ids=["oldest", "newest"])
def test_a_clone_stays_whole_whenever_it_is_made_while_a_run_transfers_and_prunes(tmp_path: Path, oldest: bool) -> None:
    """From another machine, which shares no lock with the run."""
    expected: dict[int, list[bytes]] = {}

    def begin(world: World) -> None:
        points = world.restore_point_contents()
        point = min(points) if oldest else max(points)
        expected[id(world)] = points[point]
        before = world.target.before_call
        world.target.before_call = lambda _method: None
        done = run_test(world, TestWish(point, keep=True), elsewhere=True)
        world.target.before_call = before
        if done.result is not Result.SUCCESS:
            assert done.result is Result.SKIPPED, done.error
            expected.pop(id(world))

    worlds = at_each_call_of_a_run(tmp_path, 3, begin)
    assert len(worlds) > 20
    kept = [world for world in worlds if id(world) in expected]
    assert len(kept) > len(worlds) - 4, "it gives way only where the run removes its restore point this moment"
    for world in kept:
        [clone] = clones(world)
        assert contents(clone) == expected[id(world)]
        assert stop(world).result is Result.SUCCESS
        assert world.run_vm().result is Result.SUCCESS
        assert len(world.restore_point_contents()) == 3, "retention makes up for it"


def test_retention_holds_what_a_test_stands_on_and_a_full_chain_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vrepl.planner.snapshots.LONGEST_CHAIN", 8)
    world = make_world(tmp_path / "repository", retention=4, runs=4)
    points = world.restore_point_contents()
    run_test(world, TestWish(keep=True))
    [clone] = clones(world)
    for _ in range(8):
        report = world.run_vm()
        assert contents(clone) == points[max(points)]
        if report.result is not Result.SUCCESS:
            break
    assert report.result is Result.SKIPPED
    assert report.error is not None
    assert "web-01-replica-test" in report.error.message
    assert "vrepl failover test stop" in (report.error.hint or "")
    assert len(world.replica().snapshots) == 7
    assert any("stays as long as a test stands" in note for note in world.events.notes)
    stop(world)
    assert world.run_vm().result is Result.SUCCESS
    assert len(world.restore_point_contents()) == 4


def test_a_test_keeps_nothing_from_failing_over_but_from_being_merged_away(world: World) -> None:
    points = world.restore_point_contents()
    run_test(world, TestWish(keep=True))
    [clone] = clones(world)
    assert failover(world, Start()).state == "failed-over"
    assert failover(world, Undo()).state == "ready"
    assert contents(clone) == points[max(points)]
    failover(world, Start())
    refused = failover(world, Commit())
    assert refused.result is Result.SKIPPED
    assert refused.error is not None
    assert "vrepl failover test stop web-01" in (refused.error.hint or "")
    assert contents(clone) == points[max(points)]
    stop(world)
    assert failover(world, Commit()).state == "committed"


def test_a_replica_with_a_test_on_it_is_not_removed(world: World) -> None:
    run_test(world, TestWish(keep=True))
    with pytest.raises(NotReadyError, match="web-01-replica-test"):
        retire(world.engine().services, folder_of(world), world.target, world.source, keep_vm=False)


def test_a_standalone_host_cannot_clone_and_that_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.target, "is_vcenter", False)
    done = run_test(world)
    assert done.result is Result.FAILED
    assert done.error is not None
    assert "standalone ESXi host, which cannot clone" in done.error.message
    assert "clone_linked" not in world.target.calls


@pytest.mark.parametrize("text", ["heartbeat", "port:443", "script:curl -f 'http://a b'"])
def test_a_check_is_written_as_it_is_shown(text: str) -> None:
    from vrepl.model.plans import gate_text

    assert gate_text(parse_gate(text, 1)) == text


@pytest.mark.parametrize("text", ["", "port:", "port:0", "port:70000", "script:", "ping"])
def test_a_check_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected heartbeat"):
        parse_gate(text, 1)
