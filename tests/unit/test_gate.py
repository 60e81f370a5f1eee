"""Promises of the run's gate: what a disk or a snapshot takes, who waits, and who wakes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from vrepl.admission import Demand, Resource, Scarce
from vrepl.engine.gate import SPACE_KEPT, End, Gate, disk_demand, snapshot_demand, vms_at_once
from vrepl.errors import InterruptedRunError, NoSpaceError, VreplError
from vrepl.model import (
    DataEngine,
    Disk,
    Hardware,
    ListedVm,
    ModeChoice,
    PowerState,
    TransferLimits,
    TransportMode,
    VirtualMachine,
)
from vrepl.ports import DiskAddress

SAN, HOTADD, NBDSSL, NBD = TransportMode.SAN, TransportMode.HOTADD, TransportMode.NBDSSL, TransportMode.NBD
LIMITS = TransferLimits(parallel_disks=2, nfc_mib_per_disk=4.0, snapshots_per_datastore=1)
HARDWARE = Hardware(19, "other", "efi", False, 1, 1, 512)


def machine(host: str, *datastores: str) -> VirtualMachine:
    disks = tuple(Disk(2000 + n, n, "", "", "", 1 << 20, "", store) for n, store in enumerate(datastores))
    return VirtualMachine("vm-1", "web", "i", "b", PowerState.ON, host, "dc", "group", HARDWARE, disks)


def address(site: str, mode: TransportMode) -> DiskAddress:
    return DiskAddress(site, "vm-1", None, "[a] b/c.vmdk", 1 << 20, (mode, NBDSSL), "web", "disk 0")


def needs(source: TransportMode, target: TransportMode, target_site: str = "dr") -> dict[Resource, float]:
    ends = (
        End(address("prod", source), machine("esx-1"), False, ModeChoice(source, "")),
        End(address(target_site, target), machine("esx-1"), True, ModeChoice(target, "")),
    )
    return dict(disk_demand(LIMITS, 1, ends, 0).needs)


PROD, DR = Resource(Scarce.NFC, "esx-1 (prod)"), Resource(Scarce.NFC, "esx-1 (dr)")
SLOTS_PROD, SLOTS_DR = Resource(Scarce.HOTADD, "prod"), Resource(Scarce.HOTADD, "dr")
VIA_PROD, VIA_DR = Resource(Scarce.CONNECTIONS, "prod"), Resource(Scarce.CONNECTIONS, "dr")


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (NBDSSL, NBDSSL, {PROD: 4.0, DR: 4.0, VIA_PROD: 1.0, VIA_DR: 1.0}),
        (NBD, NBD, {PROD: 4.0, DR: 4.0, VIA_PROD: 1.0, VIA_DR: 1.0}),
        (SAN, NBDSSL, {DR: 4.0, VIA_PROD: 2.0, VIA_DR: 1.0}),
        (SAN, SAN, {DR: 4.0, VIA_PROD: 2.0, VIA_DR: 1.0}),
        (
            HOTADD,
            HOTADD,
            {PROD: 4.0, DR: 4.0, VIA_PROD: 2.0, VIA_DR: 1.0, SLOTS_PROD: 2.0, SLOTS_DR: 1.0},
        ),
    ],
)
def test_what_a_disk_takes(source: TransportMode, target: TransportMode, expected: dict[Resource, float]) -> None:
    assert needs(source, target) == expected | {Resource(Scarce.DISKS, "this run"): 1.0}


def test_a_disk_that_vrepl_itself_attaches_takes_a_slot_of_the_proxy_and_no_memory_of_a_host() -> None:
    ends = [
        End(address(site, HOTADD), machine("esx-1"), written, ModeChoice(HOTADD, ""), DataEngine.OWN)
        for site, written in (("prod", False), ("dr", True))
    ]
    expected = {SLOTS_PROD: 1.0, SLOTS_DR: 1.0, Resource(Scarce.DISKS, "this run"): 1.0}
    assert dict(disk_demand(LIMITS, 1, ends, 0).needs) == expected


def test_both_ends_on_one_host_take_it_twice() -> None:
    assert needs(NBDSSL, NBDSSL, "prod")[PROD] == 8.0


@pytest.mark.slow
def test_the_free_scsi_slots_of_the_proxy_bound_what_is_hot_added() -> None:
    gate = Gate(replace(LIMITS, parallel_disks=9), lambda: None)
    choice = ModeChoice(HOTADD, "", at_once=3)
    ends = [End(address("dr", HOTADD), machine("esx-1"), True, choice)]
    with gate.hold_disk(1, ends, 0), gate.hold_disk(2, ends, 0), gate.hold_disk(3, ends, 0):
        started = threading.Event()

        def fourth() -> None:
            with gate.hold_disk(4, ends, 0):
                started.set()

        thread = threading.Thread(target=fourth)
        thread.start()
        assert not started.wait(0.3)
    thread.join(10)
    assert started.is_set()


def test_a_snapshot_takes_a_place_on_each_datastore() -> None:
    demand = snapshot_demand("prod", machine("esx-1", "a", "b", "a"))
    assert demand.needs == {Resource(Scarce.SNAPSHOTS, "a (prod)"): 1.0, Resource(Scarce.SNAPSHOTS, "b (prod)"): 1.0}


def disk(key: object) -> Demand:
    return Demand(key, {Resource(Scarce.DISKS, "this run"): 1.0})


def test_who_waits_starts_when_another_has_ended() -> None:
    gate = Gate(LIMITS, lambda: None)
    order: list[str] = []
    leave = [gate.enter(disk(1)), gate.enter(disk(2))]

    def third() -> None:
        with gate.hold(disk(3)):
            order.append("third")

    thread = threading.Thread(target=third)
    thread.start()
    order.append("first leaves")
    leave[0]()
    thread.join(10)
    assert order == ["first leaves", "third"]
    leave[1]()


def gate_that_stops() -> tuple[Gate, threading.Event]:
    """The event is the operator's stop."""
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise InterruptedRunError("stopped")

    return Gate(LIMITS, check), stopped


@pytest.mark.slow
def test_who_waits_is_woken_by_a_stop_and_takes_nothing_along() -> None:
    gate, stopped = gate_that_stops()
    leave = [gate.enter(disk(1)), gate.enter(disk(2))]
    seen: list[BaseException] = []

    def third() -> None:
        try:
            gate.enter(disk(3))
        except InterruptedRunError as error:
            seen.append(error)

    thread = threading.Thread(target=third)
    thread.start()
    stopped.set()
    thread.join(10)
    assert len(seen) == 1
    stopped.clear()
    for give_back in leave:
        give_back()
    for key in (4, 5):
        gate.enter(disk(key))


def test_a_stop_wakes_all_that_wait_whoever_of_them_was_on_watch() -> None:
    gate, stopped = gate_that_stops()
    leave = [gate.enter(disk(1)), gate.enter(disk(2))]
    ended: list[str] = []

    def wait(key: int) -> None:
        try:
            gate.enter(disk(key))
            ended.append("started")
        except InterruptedRunError:
            ended.append("stopped")

    threads = [threading.Thread(target=wait, args=(key,)) for key in range(3, 20)]
    for thread in threads:
        thread.start()
    for give_back in leave:
        give_back()  # the first of those that wait, on watch for the others, goes
    while len(ended) < 2:
        stopped.wait(0.01)
    stopped.set()
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == ["started"] * 2 + ["stopped"] * 15


def test_others_sleep_while_one_starts() -> None:
    """Each wake-up takes the one interpreter: with dozens that wait it was a tenth of what an unchanged VM cost."""
    looks: list[str] = []
    gate = Gate(LIMITS, lambda: looks.append(threading.current_thread().name))
    leave = [gate.enter(disk(1)), gate.enter(disk(2))]
    looks.clear()
    threads = [threading.Thread(target=gate.enter, args=(disk(key),), daemon=True) for key in range(3, 33)]
    for thread in threads:
        thread.start()
    while len(looks) < len(threads):
        threading.Event().wait(0.001)
    looks.clear()
    leave[0]()
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert len(set(looks)) <= 2, "whoever was on watch, and who is now"
    leave[1]()


def refusal(free: int) -> VreplError:
    return NoSpaceError(f"{free} free")


def test_vms_side_by_side_do_not_count_on_the_same_bytes() -> None:
    gate = Gate(LIMITS, lambda: None)
    free = 100
    give_up = gate.promise_room("a", "ds", 70, lambda: free, refusal)
    gate.promise_room("elsewhere", "other", 70, lambda: free, refusal)
    done: list[Callable[[], None]] = []
    thread = threading.Thread(target=lambda: done.append(gate.promise_room("b", "ds", 70, lambda: free, refusal)))
    thread.start()
    assert done == []
    give_up()
    thread.join(10)
    assert len(done) == 1


def test_free_space_is_asked_once_for_many_while_it_is_surely_enough() -> None:
    now, asked = [0.0], []

    def free() -> int:
        asked.append(now[0])
        return 100

    gate = Gate(LIMITS, lambda: None, monotonic=lambda: now[0])
    for vm in ("a", "b", "c"):
        gate.promise_room(vm, "ds", 10, free, refusal)
    assert len(asked) == 1
    now[0] = SPACE_KEPT + 1
    gate.promise_room("d", "ds", 10, free, refusal)
    assert len(asked) == 2


def test_what_was_written_since_free_space_was_read_still_counts() -> None:
    asked: list[int] = []

    def free() -> int:
        asked.append(100 - 70 * len(asked))  # the first VM writes all that it was promised
        return asked[-1]

    gate = Gate(LIMITS, lambda: None)
    gate.promise_room("a", "ds", 70, free, refusal)()
    with pytest.raises(NoSpaceError, match="30 free"):
        gate.promise_room("b", "ds", 70, free, refusal)
    assert asked == [100, 30]


def test_of_vms_that_begin_at_once_one_asks_for_the_free_space() -> None:
    gate = Gate(LIMITS, lambda: None)
    asked: list[int] = []
    answer = threading.Event()

    def free() -> int:
        asked.append(1)
        assert answer.wait(10)
        return 1000

    done: list[object] = []

    def begin(number: int) -> None:
        done.append(gate.promise_room(f"vm-{number}", "ds", 10, free, refusal))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    answer.set()
    for thread in threads:
        thread.join(10)
    assert (len(asked), len(done)) == (1, 8)


def test_who_asks_for_the_free_space_in_vain_leaves_it_to_the_next() -> None:
    gate = Gate(LIMITS, lambda: None)

    def broken() -> int:
        raise NoSpaceError("the site does not answer")

    with pytest.raises(NoSpaceError):
        gate.promise_room("a", "ds", 10, broken, refusal)
    gate.promise_room("b", "ds", 10, lambda: 1000, refusal)


def test_without_room_and_without_others_it_is_refused() -> None:
    gate = Gate(LIMITS, lambda: None)
    with pytest.raises(NoSpaceError, match="50 free"):
        gate.promise_room("a", "ds", 70, lambda: 50, refusal)


def test_a_job_may_take_more_snapshots_at_once() -> None:
    gate = Gate(replace(LIMITS, snapshots_per_datastore=2), lambda: None)
    for vm in ("vm-1", "vm-2"):
        gate.enter(snapshot_demand("prod", replace(machine("esx-1", "a"), ref=vm)))


@pytest.mark.parametrize(
    ("stores", "count", "limits", "expected"),
    [
        ("a", 1000, TransferLimits(snapshots_per_datastore=4), 16),
        ("ab", 1000, TransferLimits(snapshots_per_datastore=4), 32),
        ("abcdefgh", 1000, TransferLimits(snapshots_per_datastore=4), 64),
        ("a", 3, TransferLimits(snapshots_per_datastore=4), 3),
        ("a", 1000, TransferLimits(snapshots_per_datastore=1, parallel_disks=40), 40),
        ("", 1000, TransferLimits(snapshots_per_datastore=4), 16),
        ("a", 0, TransferLimits(), 1),
    ],
)
def test_as_many_vms_at_once_as_the_limits_keep_busy(
    stores: str, count: int, limits: TransferLimits, expected: int
) -> None:
    assert vms_at_once([ListedVm("vm-1", "web", "i", PowerState.ON, tuple(stores))] * count, limits) == expected
