"""Promises of the proof before the first write: a directly reached disk must be the one that NBD reaches."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from typing import Any

import pytest

from vrepl.errors import DiskError, DiskLockedError, TransportModeError
from vrepl.model import TransportMode
from vrepl.ports import DiskAddress, SiteConnection
from vrepl.vddk import opening
from vrepl.vddk.handles import DiskInfo
from vrepl.vddk.opening import difference, open_disk, sample_offsets

CAPACITY = 3 * 1024 * 1024 + 512
SITE = SiteConnection("vc", 443, 902, "user", "password", "00")


class FakeHandle:
    """A VDDK handle over bytes; `mode` is what VDDK says it used."""

    def __init__(self, mode: str, content: bytes, uuid: str) -> None:
        self.mode = mode
        self._content = content
        self._uuid = uuid
        self.closed = False

    def info(self) -> DiskInfo:
        return DiskInfo(len(self._content), 3, 1, self._uuid)

    def read(self, offset: int, length: int, address: int) -> None:
        ctypes.memmove(address, self._content[offset : offset + length], length)

    def read_async(self, offset: int, length: int, address: int, done: Callable[[Any], None]) -> None:
        self.read(offset, length, address)
        done(None)

    def close(self) -> None:
        self.closed = True


class Machine:
    """What opening a disk over each mode gives: a handle or an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.content = random.Random(1).randbytes(CAPACITY)
        self.over: dict[str, Any] = {
            mode: (mode, self.content, "uuid-1") for mode in ("san", "hotadd", "nbdssl", "nbd")
        }
        self.opened: list[tuple[str, bool]] = []
        self.handles: list[FakeHandle] = []
        monkeypatch.setattr(opening, "_handle_opener", self._opener)

    def _opener(self, library: object, address: object, site: object, mode: str, *, writable: bool) -> Any:
        del library, address, site

        def open_handle() -> tuple[FakeHandle, Callable[[], None]]:
            self.opened.append((mode, writable))
            what = self.over[mode]
            if isinstance(what, Exception):
                raise what
            self.handles.append(FakeHandle(*what))
            return self.handles[-1], lambda: None

        return open_handle

    def open(self, *modes: TransportMode, writable: bool = True) -> Any:
        address = DiskAddress("dr", "vm-1", None, "[a] b/c.vmdk", CAPACITY, modes, "web", "disk 0")
        return open_disk(None, address, SITE, writable=writable)  # type: ignore[arg-type]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


HOTADD, SAN, NBDSSL, NBD = TransportMode.HOTADD, TransportMode.SAN, TransportMode.NBDSSL, TransportMode.NBD


@pytest.mark.parametrize("mode", [HOTADD, SAN])
def test_the_right_disk_is_compared_and_then_opened_for_writing(machine: Machine, mode: TransportMode) -> None:
    disk = machine.open(mode, NBDSSL)
    assert disk.mode == mode
    assert machine.opened == [("nbdssl", False), (mode.value, True)]
    assert machine.handles[0].closed, "a reader's lock would keep the writer out"
    disk.close()


def flipped(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]


@pytest.mark.parametrize(
    ("capacity", "uuid", "flip", "why"),
    [
        (CAPACITY - 512, "uuid-1", None, "bytes instead of"),
        (CAPACITY, "uuid-2", None, "its uuid is uuid-2 instead of uuid-1"),
        (CAPACITY, "uuid-1", 0, "offset 0 differ"),
        (CAPACITY, "uuid-1", 1024 * 1024 + 5, "its bytes at offset .* differ"),
        (CAPACITY, "uuid-1", CAPACITY - 1, "differ"),
    ],
)
def test_another_disk_is_never_written(machine: Machine, capacity: int, uuid: str, flip: int | None, why: str) -> None:
    content = machine.content[:capacity]
    machine.over["hotadd"] = ("hotadd", content if flip is None else flipped(content, flip), uuid)
    with pytest.raises(TransportModeError, match=why) as caught:
        machine.open(HOTADD, NBDSSL)
    assert (caught.value.mode, caught.value.side) == ("hotadd", "target")
    assert all(handle.closed for handle in machine.handles)


@pytest.mark.parametrize(("direct", "network"), [("", "uuid-1"), ("uuid-1", ""), ("", "")])
def test_an_empty_uuid_is_no_evidence_for_a_write(machine: Machine, direct: str, network: str) -> None:
    """Two clones have the same bytes, and so have two empty disks: without a uuid nothing tells them apart."""
    machine.over |= {"hotadd": ("hotadd", machine.content, direct), "nbdssl": ("nbdssl", machine.content, network)}
    with pytest.raises(TransportModeError, match="cannot be told from other disks") as caught:
        machine.open(HOTADD, NBDSSL)
    assert (caught.value.mode, caught.value.side) == ("hotadd", "target")
    assert all(handle.closed for handle in machine.handles)


@pytest.mark.parametrize(("empty", "opens"), [(False, True), (True, False)])
def test_without_a_uuid_bytes_decide_for_a_read_unless_they_are_all_alike(
    machine: Machine, empty: bool, opens: bool
) -> None:
    content = bytes(CAPACITY) if empty else machine.content
    machine.over |= {"hotadd": ("hotadd", content, ""), "nbdssl": ("nbdssl", content, "uuid-1")}
    if opens:
        machine.open(HOTADD, NBDSSL, writable=False).close()
    else:
        with pytest.raises(TransportModeError, match="cannot be told"):
            machine.open(HOTADD, NBDSSL, writable=False)


def test_a_source_over_hotadd_is_compared_too(machine: Machine) -> None:
    machine.over["hotadd"] = ("hotadd", flipped(machine.content, 0), "uuid-1")
    with pytest.raises(TransportModeError) as caught:
        machine.open(HOTADD, NBDSSL, writable=False)
    assert caught.value.side == "source"


def test_what_cannot_be_compared_is_not_written_but_may_be_read(machine: Machine) -> None:
    machine.over["nbdssl"] = DiskError("no port", code=14009)
    with pytest.raises(TransportModeError, match="before the first write"):
        machine.open(HOTADD)
    disk = machine.open(HOTADD, writable=False)
    assert disk.mode == "hotadd"
    disk.close()


def test_a_mode_that_fails_at_open_is_named_so_that_the_next_is_taken(machine: Machine) -> None:
    machine.over["san"] = DiskError("no access", code=13)
    with pytest.raises(TransportModeError, match="no access, over san") as caught:
        machine.open(SAN)
    assert (caught.value.mode, caught.value.code) == ("san", 13)


def test_a_locked_disk_is_no_fault_of_the_mode(machine: Machine) -> None:
    machine.over["hotadd"] = DiskLockedError("locked", code=15)
    with pytest.raises(DiskLockedError):
        machine.open(HOTADD, NBDSSL)


def test_the_last_mode_fails_as_vddk_says(machine: Machine) -> None:
    machine.over["nbdssl"] = DiskError("no access", code=13)
    with pytest.raises(DiskError) as caught:
        machine.open(NBDSSL)
    assert not isinstance(caught.value, TransportModeError)
    with pytest.raises(TransportModeError):
        machine.open(NBDSSL, NBD)


def test_nothing_is_opened_over_a_mode_that_is_not_asked_for(machine: Machine) -> None:
    machine.open(NBDSSL).close()
    assert machine.opened == [("nbdssl", True)]


@pytest.mark.parametrize("capacity", [512, 4096, 65536, 1024 * 1024, CAPACITY, 62 * 1024**4])
def test_samples_lie_on_the_disk_and_reach_its_end(capacity: int) -> None:
    offsets = sample_offsets(capacity)
    assert offsets[0] == 0
    assert offsets == sorted(set(offsets))
    assert all(offset % 512 == 0 and offset < capacity for offset in offsets)
    assert offsets[-1] + 4096 >= capacity - 512


def test_equal_evidence_has_no_difference() -> None:
    evidence = opening.Evidence(512, "u", ((0, "aa"),))
    assert difference(evidence, evidence) is None
