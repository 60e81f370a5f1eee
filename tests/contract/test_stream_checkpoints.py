"""Checkpoints over a stream: the flush goes out behind the writes, unanswered as they are; what is recorded is true."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterable

import pytest

from tests.support.memory_disk import MemoryDisk, MemoryHandle, full_copy_of
from tests.support.memory_records import MemoryDigests, MemoryLog
from tests.support.tun_line import TunLine
from vrepl.errors import DiskError, VreplError
from vrepl.extents import GRAIN
from vrepl.stream.remote import RemoteDisk
from vrepl.stream.serve import serve_disk
from vrepl.transport.buffers import MIB
from vrepl.transport.decorators import FailingDisk, LateDisk
from vrepl.transport.disk import DiskWriter
from vrepl.transport.grains import digest
from vrepl.transport.transfer import copy_disk

CAPACITY = 24 * MIB
SLOW = 0.02
"""Seconds a call: long enough for several checkpoints."""


class TrueLog(MemoryLog):
    """Fails as soon as it is told of a grain that is not on the disk."""

    def __init__(self, disk: MemoryDisk) -> None:
        super().__init__()
        self._disk = disk

    def record(self, entries: Iterable[tuple[int, bytes]]) -> None:
        before = set(self.done)
        super().record(entries)
        for grain in self.done.keys() - before:
            assert self.done[grain] == digest(self._disk.read(grain * GRAIN, GRAIN)), f"grain {grain} is not there"


class NotedDisk(RemoteDisk):
    """Remembers how many writes were unanswered when a flush was asked for."""

    unanswered: list[int]

    def flush(self) -> None:
        self.unanswered.append(len(self._pending))
        super().flush()


class Line:
    """A source's end in this thread, a served target in another."""

    def __init__(self) -> None:
        self.source, self.target = MemoryDisk(CAPACITY), MemoryDisk(CAPACITY)
        self.source.write(0, random.Random(7).randbytes(CAPACITY))
        self.log = TrueLog(self.target)
        self.unanswered: list[int] = []

    def copy(self, served: DiskWriter, reader: DiskWriter | None = None) -> None:
        near, far = socket.socketpair()
        errors: list[VreplError] = []

        def serve() -> None:
            try:
                serve_disk(lambda: served, far)
            except VreplError as error:
                errors.append(error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        remote = NotedDisk(near)
        remote.unanswered = self.unanswered
        reads = reader or MemoryHandle(self.source)
        try:
            copy_disk(full_copy_of(CAPACITY), reads, remote, MemoryDigests({}), self.log)
        finally:
            remote.close()
            thread.join()
            near.close()
            far.close()


def test_a_flush_does_not_wait_for_the_answers_before_it() -> None:
    line = Line()
    line.copy(LateDisk(MemoryHandle(line.target, writable=True), SLOW))
    assert max(line.unanswered) > 0
    assert line.target.content() == line.source.content()
    assert len(line.log.done) == CAPACITY // GRAIN


@pytest.mark.parametrize("number", [5, 17])
def test_a_write_that_fails_before_the_flush_is_not_recorded(number: int) -> None:
    line = Line()
    failing = FailingDisk(MemoryHandle(line.target, writable=True), {"write": (number, DiskError("disk is full"))})
    with pytest.raises(DiskError, match="disk is full"):
        line.copy(LateDisk(failing, SLOW))
    for grain, value in line.log.done.items():
        assert value == digest(line.source.read(grain * GRAIN, GRAIN))


def test_a_read_that_fails_during_a_flush_costs_nothing_of_what_was_written() -> None:
    line = Line()
    reads = LateDisk(FailingDisk(MemoryHandle(line.source), {"read": (20, DiskError("a bad sector"))}), SLOW)
    with pytest.raises(DiskError, match="a bad sector"):
        line.copy(LateDisk(MemoryHandle(line.target, writable=True), SLOW), reads)
    on_disk = {
        grain
        for grain in range(CAPACITY // GRAIN)
        if line.target.read(grain * GRAIN, GRAIN) == line.source.read(grain * GRAIN, GRAIN)
    }
    assert set(line.log.done) == on_disk
    assert on_disk


def test_tcp_takes_a_line_that_loses_packets() -> None:
    """The device that the benchmarks measure over; one packet of a hundred is lost."""
    try:
        lossy = TunLine(delay=0.002, rate=20e6, loss=0.01)
    except OSError as error:
        pytest.skip(f"this machine or this user may have no TUN device: {error}")
    data = random.Random(3).randbytes(2 * MIB)
    try:
        with socket.create_server(("", 0)) as listener:
            near = socket.create_connection((lossy.peer, listener.getsockname()[1]), 10)
            far, _ = listener.accept()
        with near, far:
            sender = threading.Thread(target=near.sendall, args=(data,), daemon=True)
            sender.start()
            far.settimeout(20)
            with far.makefile("rb") as file:
                assert file.read(len(data)) == data
            sender.join()
    finally:
        lossy.close()
