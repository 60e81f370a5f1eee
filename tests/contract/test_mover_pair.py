"""A source mover and a target mover joined by a stream: the same pipeline, and what happens when an end dies."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_nfc import GRAIN
from tests.support.memory_disk import MemoryDisk, MemoryHandle, full_copy_of
from tests.support.memory_records import MemoryDigests, MemoryLog
from tests.support.vddk_site import CAPACITY, VddkSite, ignore, make_site, resumed, some_grains
from tests.support.vixdisklib_lab import ERROR, MIB, FakeLab, rule
from vrepl.errors import DiskError, DiskLockedError, MoverError
from vrepl.movers.pair import MoverPair
from vrepl.movers.pool import VddkMovers
from vrepl.movers.settings import MoverSettings
from vrepl.ports import TransferProgress
from vrepl.repository.transferlog import read_log
from vrepl.stream.compression import Compressor
from vrepl.stream.remote import RemoteDisk
from vrepl.stream.serve import serve_disk
from vrepl.transport.transfer import copy_disk


@pytest.fixture
def site(fake_lab: FakeLab) -> VddkSite:
    return make_site(fake_lab, CAPACITY, some_grains(256))


@pytest.fixture
def movers(site: VddkSite) -> Iterator[VddkMovers]:
    made = VddkMovers(site.connection, site.settings, pair=True)
    yield made
    made.close()


def the_pair(movers: VddkMovers) -> MoverPair:
    (pair,) = [*(entry[1] for entry in movers._idle), *movers._busy]
    assert isinstance(pair, MoverPair)
    return pair


def test_a_pair_copies_and_stays_warm(site: VddkSite, movers: VddkMovers) -> None:
    result = movers.transfer(site.order(), ignore)
    assert site.target.content() == site.source.content()
    assert (result.source_mode, result.target_mode) == ("nbdssl", "nbdssl")
    first = the_pair(movers)
    assert first.source.pid != first.target.pid
    movers.transfer(site.order(attempt=2, compare_with_target=True, fresh=False), ignore)
    assert the_pair(movers) is first
    assert {lock.state for lock in site.lab.nfc.locks} == {"released"}


def test_a_comparison_across_a_pair_moves_only_what_differs(site: VddkSite, movers: VddkMovers) -> None:
    movers.transfer(site.order(), ignore)
    data = bytearray(site.target.flat().read_bytes())
    data[4 * GRAIN] ^= 1
    site.target.flat().write_bytes(bytes(data))
    result = movers.transfer(site.order(attempt=2, compare_with_target=True, fresh=False), ignore)
    assert result.bytes_moved == GRAIN
    assert site.target.content() == site.source.content()


@pytest.mark.parametrize("end", ["source", "target"])
def test_the_death_of_either_end_is_told_and_resumed_from(site: VddkSite, movers: VddkMovers, end: str) -> None:
    site.lab.set(bandwidth_bytes_s=16 * MIB)
    killed: list[int] = []

    def kill(progress: TransferProgress) -> None:
        if progress.bytes_moved > 2 * MIB and not killed:
            pair = the_pair(movers)
            killed.append(pair.source.pid if end == "source" else pair.target.pid)
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(MoverError, match="SIGKILL") as caught:
        movers.transfer(site.order(), kill)
    assert caught.value.retryable
    assert ("target" in caught.value.message) == (end == "target")
    site.lab.set()
    for lock in site.lab.nfc.locks:
        lock.state = "released"
    last = read_log(site.folder / "transfer.log").last
    assert last is not None
    assert last.done, "checkpoints until then are valid"
    movers.transfer(resumed(site), ignore)
    assert site.target.content() == site.source.content()


def test_the_targets_error_crosses_the_stream_with_offset_and_code(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set((rule("write", ERROR, code=8, first=3),))
    with pytest.raises(DiskError, match="disk is full") as caught:
        movers.transfer(site.order(), ignore)
    assert caught.value.code == 8
    assert caught.value.offset is not None


def test_a_target_that_cannot_be_opened_is_told(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set((rule("open", ERROR, code=15, vm="target"),))
    with pytest.raises(DiskLockedError, match=r"opening \[dr\]"):
        movers.transfer(site.order(), ignore)
    movers.transfer(site.order(), ignore)
    assert site.target.content() == site.source.content()


def test_two_vddk_folders_make_a_pair_by_themselves(site: VddkSite, fake_lab: FakeLab, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "lib64").mkdir(parents=True)
    for name in ("libvixDiskLib.so.8", "lab.conf"):
        (other / "lib64" / name).symlink_to(fake_lab.folder / "lib64" / name)
    made = VddkMovers(site.connection, lambda name: MoverSettings(site.folder if name == "prod" else other))
    made.transfer(site.order(), ignore)
    assert isinstance(the_pair(made), MoverPair)
    assert site.target.content() == site.source.content()
    made.close()


def stream_copy(source: MemoryDisk) -> tuple[int, MemoryDisk]:
    """Copies over a socket pair; returns the payload bytes that crossed."""
    target = MemoryDisk(source.capacity)
    near, far = socket.socketpair()
    received: list[int] = []
    thread = threading.Thread(
        target=lambda: received.append(serve_disk(lambda: MemoryHandle(target, writable=True), far))
    )
    thread.start()
    remote = RemoteDisk(near)
    copy_disk(full_copy_of(source.capacity), MemoryHandle(source), remote, MemoryDigests({}), MemoryLog())
    remote.close()
    thread.join()
    near.close()
    far.close()
    return received[0], target


def test_zeros_cross_as_commands_and_skipped_grains_not_at_all() -> None:
    source = MemoryDisk(8 * MIB)
    source.write(0, bytes(2 * MIB))
    source.write(5 * MIB, random.Random(2).randbytes(GRAIN))
    received, target = stream_copy(source)
    assert target.content() == source.content()
    assert received == GRAIN


def test_compression_is_used_where_it_pays_and_only_there() -> None:
    text = memoryview(b"replication " * 5461 + b"....")
    slow, fast = Compressor(), Compressor()
    assert slow.pack(text) is not None, "what lies before all else on a slow line goes before its speed is known"
    slow.sent(1 << 20, 1.0)  # 1 MiB/s
    assert slow.pays
    assert slow.pack(text) is not None
    fast.sent(1 << 20, 0.0)  # no time at all
    fast.pack(text)
    assert not fast.pays
    assert fast.pack(text) is None
    noise = Compressor()
    assert noise.pack(memoryview(random.Random(1).randbytes(1 << 16))) is None
    noise.sent(1 << 20, 1.0)
    assert not noise.pays
