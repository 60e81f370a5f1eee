"""Promises of the budgets that runs of one repository share: together they pass no limit, whoever of them dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.world import World, source
from vrepl.admission import Admission, Demand, Resource, Scarce, Start
from vrepl.engine.gate import Gate
from vrepl.errors import InterruptedRunError, RepositoryError
from vrepl.model import TransferLimits
from vrepl.report.model import Result, RunReport
from vrepl.repository import budgets
from vrepl.repository.budgets import PATIENCE, Budgets
from vrepl.repository.store import Repository

STORE = Resource(Scarce.SNAPSHOTS, "ds (prod)")
HOST = Resource(Scarce.NFC, "esx (prod)")
SLOTS = Resource(Scarce.SLOTS, "proxy-1")


class Run:
    """One run's part, without threads."""

    def __init__(self, folder: Path, clock: list[float] | None = None, **limits: float) -> None:
        self.limits = {Scarce.SNAPSHOTS: 4.0, Scarce.NFC: 32.0, Scarce.SLOTS: 2.0} | {
            Scarce[kind.upper()]: limit for kind, limit in limits.items()
        }
        self.admission = Admission(lambda resource: self.limits[resource.kind])
        self.budgets = Budgets(folder, monotonic=(lambda: clock[0]) if clock else time.monotonic)
        self.running: list[Start] = []
        self.offered = 0

    def want(self, count: int = 1, needs: dict[Resource, float] | None = None, proxies: tuple[str, ...] = ()) -> int:
        for _ in range(count):
            self.offered += 1
            self.admission.offer(Demand(self.offered, {STORE: 1.0} if needs is None else needs, proxies))
        return self.look()

    def look(self) -> int:
        """How many it has after it has looked."""
        self.running += self.budgets.admit(self.admission)
        return len(self.running)

    def end(self, position: int = 0) -> int:
        self.admission.release(self.running.pop(position).demand.key)
        return self.look()

    def holds(self, resource: Resource) -> float:
        return sum(
            start.demand.needs.get(resource, 0.0) + (resource == Resource(Scarce.SLOTS, start.proxy or ""))
            for start in self.running
        )


def test_what_one_run_holds_another_lacks_until_it_is_given_back(tmp_path: Path) -> None:
    one, other = Run(tmp_path), Run(tmp_path)
    assert one.want(3) == 3
    assert other.want(2) == 1
    assert other.look() == 1
    one.end()
    assert other.look() == 2


def test_a_large_run_leaves_a_small_one_its_share(tmp_path: Path) -> None:
    large, small = Run(tmp_path), Run(tmp_path)
    assert large.want(100) == 4
    assert small.want(2) == 0
    for _ in range(2):
        large.end()
        small.look()
    assert (len(large.running), len(small.running)) == (2, 2)
    large.end()
    assert small.look() == 2, "it wants no more"
    assert large.look() == 2, "and what it does not want is not left free"


def test_of_one_place_alone_runs_take_turns(tmp_path: Path) -> None:
    one, other = (Run(tmp_path, snapshots=1) for _ in range(2))
    one.want(3)
    other.want(3)
    order = ""
    while one.running or other.running:
        order += "1" if one.running else "2"
        (one if one.running else other).end()
        other.look()
        one.look()
    assert order == "121212"


def test_who_needs_much_at_once_is_not_overtaken_for_ever(tmp_path: Path) -> None:
    small, large = Run(tmp_path), Run(tmp_path)
    assert small.want(100, {HOST: 4.0}) == 8
    assert large.want(1, {HOST: 32.0}) == 0
    for left in range(7, 0, -1):
        assert small.end() == left, "what is given back is kept for who needs all of it"
        assert large.look() == 0
    small.end()
    assert large.look() == 1


def test_the_lowest_limit_holds_while_its_run_takes_part(tmp_path: Path) -> None:
    careful, bold = Run(tmp_path, snapshots=2), Run(tmp_path, snapshots=8)
    assert careful.want(1) == 1
    assert bold.want(8) == 1
    careful.end()
    assert bold.look() == 8
    assert careful.want(1) == 0
    while len(bold.running) > 1:
        bold.end()
    assert careful.look() == 1


def test_slots_of_proxies_are_shared_whichever_serves(tmp_path: Path) -> None:
    one, other = Run(tmp_path), Run(tmp_path)
    assert one.want(3, {}, ("proxy-1", "proxy-2")) == 3
    assert other.want(2, {}, ("proxy-1", "proxy-2")) == 1
    assert one.holds(SLOTS) + other.holds(SLOTS) == 2
    one.end()
    assert other.look() == 2


def test_who_stopped_in_its_right_of_way_holds_up_the_others_only_for_a_moment(tmp_path: Path) -> None:
    clock = [0.0]
    stopped, alive = Run(tmp_path, clock), Run(tmp_path, clock)
    alive.want(6)
    stopped.want(1)  # and looks no more
    assert alive.end() == 3, "the place is its"
    clock[0] += PATIENCE / 2
    assert alive.look() == 3
    clock[0] += 1.1 * PATIENCE
    assert alive.look() == 4
    assert stopped.look() == 0


def test_a_run_that_needs_nothing_leaves_no_file(tmp_path: Path) -> None:
    one = Run(tmp_path)
    one.want(1)
    [file] = tmp_path.glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [row["name"] for row in json.loads(file.read_text())["stakes"]] == ["ds (prod)"]
    assert json.loads(file.read_text())["pid"] == os.getpid()
    one.end()
    assert not list(tmp_path.glob("*.json"))
    assert not one.budgets.others


def test_a_lock_that_is_not_let_go_starts_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "LOCK_SECONDS", 0.01)
    one, other = Run(tmp_path), Run(tmp_path)
    one.want(1)
    with one.budgets._locked():
        assert other.want(1) == 0
        assert other.budgets.others
    assert other.look() == 1


WORK = st.lists(
    st.dictionaries(st.sampled_from([STORE, HOST]), st.sampled_from([1.0, 2.0, 4.0]), min_size=1), max_size=8
)
LIMITS = st.tuples(st.sampled_from([4.0, 5.0, 9.0]), st.sampled_from([4.0, 7.0, 32.0]))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(WORK, LIMITS), min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_whoever_looks_when_no_limit_is_passed_and_all_gets_its_turn(
    tmp_path_factory: pytest.TempPathFactory,
    works: list[tuple[list[dict[Resource, float]], tuple[float, float]]],
    order: random.Random,
) -> None:
    folder, clock = tmp_path_factory.mktemp("budgets"), [0.0]
    runs = [Run(folder, clock, snapshots=limits[0], nfc=limits[1]) for _, limits in works]
    left = {run: list(work) for run, (work, _) in zip(runs, works, strict=True)}
    idle = 0
    while any(left.values()) or any(run.running or run.admission.waiting for run in runs):
        run = order.choice(runs)
        before = len(run.running)
        if run.running and order.random() < 0.4:
            run.end(order.randrange(len(run.running)))
            idle = 0
        elif left[run] and order.random() < 0.5:
            run.want(1, left[run].pop())
        elif run.running and order.random() < 0.02:  # killed: its files are free, and its work is over
            left[run].clear()
            assert run.budgets._file is not None
            os.close(run.budgets._file[1])
            runs.remove(run)
            continue
        else:
            run.look()
        if len(run.running) > before:
            idle = 0
            for resource in (STORE, HOST):
                holders = [one for one in runs if one.holds(resource)]
                if run in holders and run.running[-1].demand.needs.get(resource):
                    assert sum(one.holds(resource) for one in holders) <= min(
                        one.limits[resource.kind] for one in holders
                    )
        idle += 1
        clock[0] += PATIENCE / 4
        assert idle < 500 or any(one.running for one in runs), "all wait although nothing runs"


# -- real processes --------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, threading, time
from pathlib import Path
from vrepl.admission import Demand, Resource, Scarce
from vrepl.engine.gate import Gate
from vrepl.model import TransferLimits
from vrepl.repository.store import Repository

repository, name, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
gate = Gate(TransferLimits(), lambda: None, budgets=Repository.open(repository).budgets())
log = open(repository.with_name(f"{name}.log"), "a", buffering=1)

def work(number):
    for _ in range(rounds):
        with gate.hold(Demand(number, {Resource(Scarce.SNAPSHOTS, "ds (prod)"): 1.0})):
            log.write(f"{time.monotonic_ns()} 1\\n")
            time.sleep(0.01)
            log.write(f"{time.monotonic_ns()} -1\\n")

threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
"""Six threads, each of which takes a place on one datastore so many times."""


@contextmanager
def process(repository: Path, name: str, rounds: int) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", PROGRAM, str(repository), name, str(rounds)])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def events(repository: Path, *names: str) -> list[tuple[int, str, int]]:
    """(moment, process, 1 for a place taken and -1 for one given back), in their order."""
    found = []
    for name in names:
        file = repository.with_name(f"{name}.log")
        for line in file.read_text().splitlines() if file.exists() else []:
            moment, change = line.split()
            found.append((int(moment), name, int(change)))
    return sorted(found)


def most_at_once(changes: list[tuple[int, str, int]]) -> int:
    now, most = 0, 0
    for _, _, change in changes:
        now += change
        most = max(most, now)
    return most


@pytest.mark.slow
def test_two_processes_keep_to_the_limits_together_and_one_that_is_killed_leaves_all_to_the_others(
    tmp_path: Path,
) -> None:
    repository = tmp_path / "repository"
    Repository.open(repository)
    with process(repository, "killed", 10**6) as killed, process(repository, "lives", 5) as lives:
        assert lives.wait(120) == 0, "the other, which has work for ever, left it its share"
        for_ever = len(events(repository, "killed"))
        deadline = time.monotonic() + 60
        while len(events(repository, "killed")) < for_ever + 20:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    both = events(repository, "killed", "lives")
    assert most_at_once(both) == 4
    assert Counter(name for _, name, _ in both)["lives"] == 2 * 6 * 5
    [left] = (repository / "budgets").glob("*.json")
    assert left.name.startswith(f"{killed.pid}-")
    assert Run(repository / "budgets").want(5) == 4
    assert not left.exists()


# -- the gate --------------------------------------------------------------------------------------------------------


def test_who_stops_while_it_waits_for_another_run_wants_nothing_any_more(tmp_path: Path) -> None:
    other = Run(tmp_path)
    other.want(4)
    stopped = [False]

    def check() -> None:
        if stopped[0]:
            raise InterruptedRunError("stopped")

    gate = Gate(TransferLimits(), check, budgets=Budgets(tmp_path))
    seen: list[BaseException] = []

    def want() -> None:
        try:
            gate.enter(Demand("mine", {STORE: 1.0}))
        except InterruptedRunError as error:
            seen.append(error)

    thread = Thread(target=want)
    thread.start()
    while len(list(tmp_path.glob("*.json"))) < 2:
        time.sleep(0.001)
    stopped[0] = True
    thread.join(10)
    assert len(seen) == 1
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_budgets_that_cannot_be_read_are_an_error_with_their_path(tmp_path: Path) -> None:
    folder = tmp_path / "budgets"
    folder.write_text("")
    gate = Gate(TransferLimits(), lambda: None, budgets=Budgets(folder))
    with pytest.raises(RepositoryError, match="budgets"):
        gate.enter(Demand("mine", {STORE: 1.0}))


def test_a_run_takes_no_snapshot_while_another_run_has_all_places(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.source.add_vm("web-01", [1 << 20])
    store = world.source.read_vm(source(world).ref).disks[0].store
    other = Run(tmp_path / "budgets")
    assert other.want(4, {Resource(Scarce.SNAPSHOTS, f"{store} (prod)"): 1.0}) == 4
    taken: list[int] = []
    world.source.before_call = lambda method: taken.append(len(other.running)) if method == "create_snapshot" else None
    engine = world.engine()
    reports: list[RunReport] = []
    thread = Thread(target=lambda: reports.append(engine.replicate(world.job)))
    thread.start()
    while not any(store in file.read_text() for file in waiting(other)):
        assert thread.is_alive(), "it did not wait"
        time.sleep(0.005)
    assert not taken
    other.end()
    thread.join(60)
    assert [vm.result for vm in reports[0].vms] == [Result.SUCCESS]
    assert taken == [3]


def waiting(other: Run) -> list[Path]:
    """Files of runs beside this one's."""
    assert other.budgets._file is not None
    folder, mine = other.budgets._file[0].parent, other.budgets._file[0]
    return [file for file in folder.glob("*.json") if file != mine]
