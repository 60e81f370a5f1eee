"""vrepl's data movers over the lab's libvixDiskLib: copying, verifying, faults, death, stopping."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.fake_nfc import GRAIN, PASSWORD
from tests.support.vddk_site import CAPACITY, SOURCE, TARGET, VddkSite, ignore, make_site, resumed, some_grains
from tests.support.vixdisklib_lab import CRASH, ERROR, FREEZE, LOST, MIB, FakeLab, rule
from vrepl.errors import (
    DiskError,
    DiskLockedError,
    InterruptedRunError,
    LibraryError,
    MoverError,
    NfcMemoryError,
    NotReadyError,
    TransientDiskError,
    TransportModeError,
)
from vrepl.extents import from_grains
from vrepl.model import TransportMode
from vrepl.movers.pair import MoverPair
from vrepl.movers.pool import BRIEF_CALLS, VddkMovers
from vrepl.ports import DigestFiles, TransferProgress, VerifyOrder
from vrepl.repository.transferlog import read_log


@pytest.fixture
def site(fake_lab: FakeLab) -> VddkSite:
    return make_site(fake_lab, CAPACITY, some_grains(256))


@pytest.fixture
def movers(site: VddkSite) -> Iterator[VddkMovers]:
    made = VddkMovers(site.connection, site.settings)
    yield made
    made.close()


def movers_of(movers: VddkMovers) -> list[int]:
    pids = []
    for mover in (*(entry[1] for entry in movers._idle), *movers._busy):
        pids += [mover.source.pid, mover.target.pid] if isinstance(mover, MoverPair) else [mover.pid]
    return pids


def test_a_full_copy_moves_what_is_allocated_and_tells(site: VddkSite, movers: VddkMovers) -> None:
    seen: list[TransferProgress] = []
    result = movers.transfer(site.order(), seen.append)
    assert site.target.content() == site.source.content()
    allocated = len(some_grains(256)) * GRAIN
    assert result.bytes_read == allocated + 1536, "the disk's tail that is no whole chunk counts as allocated"
    assert result.bytes_moved == allocated
    assert result.bytes_moved + result.bytes_skipped == CAPACITY
    assert (result.source_mode, result.target_mode) == ("nbdssl", "nbdssl")
    assert set(result.waits) == {"source", "mover", "network", "target"}
    assert seen[-1].settled == seen[-1].planned == CAPACITY
    assert {lock.state for lock in site.lab.nfc.locks} == {"released"}


def test_what_vddk_chats_about_is_no_news_to_an_operator(site: VddkSite, movers: VddkMovers) -> None:
    """Cron mails what goes to standard error: VDDK's warnings of CEIP and PhoneHome came with every run."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign,assignment]
    logger = logging.getLogger("vrepl.mover")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        movers.transfer(site.order(), ignore)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert any("CEIP" in record.getMessage() for record in records)
    assert [record.getMessage() for record in records if record.levelno >= logging.WARNING] == []


def test_without_allocated_blocks_everything_is_read(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set(allocated_supported=0)
    result = movers.transfer(site.order(), ignore)
    assert result.bytes_read == CAPACITY
    assert site.target.content() == site.source.content()


def test_one_mover_stays_warm_for_the_next_disk(site: VddkSite, movers: VddkMovers) -> None:
    movers.transfer(site.order(), ignore)
    before = movers_of(movers)
    movers.transfer(site.order(attempt=2), ignore)
    assert movers_of(movers) == before
    assert len(before) == 1


def test_comparing_with_a_target_of_which_nothing_is_known(site: VddkSite, movers: VddkMovers) -> None:
    movers.transfer(site.order(), ignore)
    flat = site.target.flat()
    data = bytearray(flat.read_bytes())
    data[5 * GRAIN + 100] ^= 1
    flat.write_bytes(bytes(data))
    result = movers.transfer(site.order(attempt=2, compare_with_target=True, fresh=False), ignore)
    assert result.bytes_moved == GRAIN
    assert site.target.content() == site.source.content()


def test_verify_finds_what_differs_from_its_digests(site: VddkSite, movers: VddkMovers) -> None:
    movers.transfer(site.order(), ignore)
    nothing_written = DigestFiles(None, fresh=True)
    result = movers.verify(VerifyOrder(site.address(TARGET), nothing_written), ignore)
    assert result.bad_extents == from_grains(some_grains(256), CAPACITY)
    assert result.mode == "nbdssl"


def test_a_crash_inside_the_library_costs_one_mover_and_resumes(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set((rule("write", CRASH, first=8),))
    with pytest.raises(MoverError, match="SIGSEGV") as caught:
        movers.transfer(site.order(), ignore)
    assert caught.value.retryable
    site.lab.set()
    for lock in site.lab.nfc.locks:
        lock.state = "released"  # the dead client's locks have lingered long enough
    movers.transfer(resumed(site), ignore)
    assert site.target.content() == site.source.content()


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_lost_connection_is_transient_and_resumes(site: VddkSite, movers: VddkMovers, operation: str) -> None:
    site.lab.set((rule(operation, LOST, first=7, vm="source" if operation == "read" else "target"),))
    with pytest.raises(TransientDiskError) as caught:
        movers.transfer(site.order(), ignore)
    assert caught.value.code == 14011
    assert caught.value.offset is not None
    site.lab.set()
    for lock in site.lab.nfc.locks:
        lock.state = "released"
    movers.transfer(resumed(site), ignore)
    assert site.target.content() == site.source.content()


def test_an_error_at_the_nth_write_names_offset_and_code(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set((rule("write", ERROR, code=8, first=3),))
    with pytest.raises(DiskError, match=r"writing .* at offset \d+: .*disk is full.*\(VixError 8\)") as caught:
        movers.transfer(site.order(), ignore)
    assert caught.value.code == 8
    assert not caught.value.retryable
    assert len(movers_of(movers)) == 1, "an error is no reason to give up a mover"


def test_an_error_with_high_bits_is_no_success(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set((rule("read", ERROR, code=0x100000000 | 14009),))
    with pytest.raises(TransientDiskError, match="14009"):
        movers.transfer(site.order(), ignore)


def test_a_short_freeze_is_sat_out(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set((rule("read", FREEZE, first=3, param=300),))
    result = movers.transfer(site.order(), ignore)
    assert site.target.content() == site.source.content()
    assert result.waits["source"] > 0.2


def test_connection_refused_at_open_says_what_to_look_at(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set((rule("open", ERROR, code=14009),))
    with pytest.raises(TransientDiskError) as caught:
        movers.transfer(site.order(), ignore)
    assert "902" in (caught.value.hint or "")


def test_a_locked_disk_is_to_be_tried_again(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set((rule("open", ERROR, code=15, vm="target"),))
    with pytest.raises(DiskLockedError) as caught:
        movers.transfer(site.order(), ignore)
    assert caught.value.retryable


def test_short_of_nfc_memory_a_new_mover_takes_smaller_buffers(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.nfc.nfc_limit_kib = 3 * 1024  # two disks of 4 MiB do not fit, nor two of 2 MiB
    movers.transfer(site.order(), ignore)
    assert site.target.content() == site.source.content()
    taken = [lock.nfc_kib for lock in site.lab.nfc.locks if lock.nfc_kib]
    assert taken[-2:] == [1024, 1024]


def test_too_little_nfc_memory_for_any_buffers_is_said(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.nfc.nfc_limit_kib = 16
    with pytest.raises(NfcMemoryError):
        movers.transfer(site.order(), ignore)


def test_a_mode_that_fails_in_mid_copy_is_named(site: VddkSite, movers: VddkMovers) -> None:
    site.target.mode = "hotadd"
    site.lab.set((rule("write", ERROR, code=7, first=5, mode="hotadd"),))
    order = site.order()
    object.__setattr__(order, "target", site.address(TARGET, (TransportMode.HOTADD, TransportMode.NBDSSL)))
    with pytest.raises(TransportModeError) as caught:
        movers.transfer(order, ignore)
    assert caught.value.mode == "hotadd"
    assert caught.value.code == 7


@pytest.mark.parametrize("mode", ["hotadd", "san"])
def test_direct_modes_copy_by_threads(site: VddkSite, movers: VddkMovers, mode: str) -> None:
    site.source.mode = site.target.mode = mode
    order = site.order()
    for side, path in (("source", SOURCE), ("target", TARGET)):
        object.__setattr__(order, side, site.address(path, (TransportMode(mode),)))
    result = movers.transfer(order, ignore)
    assert (result.source_mode, result.target_mode) == (mode, mode)
    assert site.target.content() == site.source.content()
    assert {lock.state for lock in site.lab.nfc.locks} == {"released"}


def test_a_direct_mode_that_falls_back_to_nbd_at_open_is_served_asynchronously(
    site: VddkSite, movers: VddkMovers
) -> None:
    order = site.order()
    object.__setattr__(order, "source", site.address(SOURCE, (TransportMode.HOTADD, TransportMode.NBDSSL)))
    assert movers.transfer(order, ignore).source_mode == "nbdssl"
    assert site.target.content() == site.source.content()


def stop_in_mid_transfer(site: VddkSite, movers: VddkMovers) -> float:
    """Seconds from stop to the end of the call."""
    moving = threading.Event()
    stopped_at = 0.0

    def watch(progress: TransferProgress) -> None:
        if progress.bytes_moved > 0:
            moving.set()

    def stop() -> None:
        nonlocal stopped_at
        assert moving.wait(20)
        stopped_at = time.monotonic()
        movers.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(InterruptedRunError):
        movers.transfer(site.order(), watch)
    ended = time.monotonic()
    thread.join()
    return ended - stopped_at


def test_stop_closes_the_disks_properly(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set(bandwidth_bytes_s=8 * MIB)
    stop_in_mid_transfer(site, movers)
    assert {lock.state for lock in site.lab.nfc.locks} == {"released"}
    last = read_log(site.folder / "transfer.log").last
    assert last is not None
    assert last.done
    with pytest.raises(InterruptedRunError):
        movers.transfer(site.order(attempt=2), ignore)


def test_stop_does_not_wait_for_a_frozen_host(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set((rule("read", FREEZE, first=8, param=20_000),), bandwidth_bytes_s=8 * MIB)
    assert stop_in_mid_transfer(site, movers) < 15, "the host is frozen for 20 s"


def test_the_mover_has_no_other_openssl_and_no_secret_in_sight(site: VddkSite, movers: VddkMovers) -> None:
    movers.probe(site.address(SOURCE))
    (pid,) = movers_of(movers)
    proc = Path(f"/proc/{pid}")
    mapped = {line.split()[-1] for line in (proc / "maps").read_text().splitlines() if "/" in line}
    assert any("libvixDiskLib" in path for path in mapped)
    assert not [path for path in mapped if "libcrypto" in path or "libssl" in path]
    assert PASSWORD.encode() not in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
    assert os.getpgid(pid) != os.getpgid(0), "Ctrl-C at the terminal must not reach it"


def test_the_control_process_never_loads_the_library(site: VddkSite, movers: VddkMovers) -> None:
    movers.transfer(site.order(), ignore)
    assert "libvixDiskLib" not in Path("/proc/self/maps").read_text()


def test_a_killed_mover_is_reported_and_replaced(site: VddkSite, movers: VddkMovers) -> None:
    site.lab.set(bandwidth_bytes_s=16 * MIB)

    def kill(progress: TransferProgress) -> None:
        for pid in movers_of(movers):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(MoverError, match="SIGKILL"):
        movers.transfer(site.order(), kill)
    assert movers_of(movers) == []
    site.lab.set()
    for lock in site.lab.nfc.locks:
        lock.state = "released"
    movers.transfer(resumed(site), ignore)
    assert site.target.content() == site.source.content()


def test_movers_share_one_folder_that_stays_and_leave_nothing_else(
    site: VddkSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are killed: what VDDK notes in its temporary folder is there for the Cleanup of a later one."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "state" / "vrepl" / "vddk"
    for ending in ("close", "kill"):
        made = VddkMovers(site.connection, site.settings)
        made.probe(site.address(SOURCE))
        (config,) = folder.iterdir()
        assert f"tmpDirectory={folder}" in config.read_text().splitlines()
        assert config.stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
        if ending == "kill":
            for pid in movers_of(made):
                os.kill(pid, signal.SIGKILL)
        made.close()
    assert list(temporary.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(site: VddkSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = VddkMovers(site.connection, site.settings)
    with pytest.raises(LibraryError, match=r"cannot be used: .*/state/vrepl"):
        made.probe(site.address(SOURCE))
    made.close()


def test_prepare_end_access_and_cleanup_reach_the_vcenter(site: VddkSite, movers: VddkMovers) -> None:
    movers.prepare_for_access("prod", "vm-1", "vrepl-" + "x" * 60)
    movers.end_access("prod", "vm-1", "vrepl-run")
    movers.cleanup("prod", "vm-1")
    operations = [request["op"] for request in site.lab.nfc.requests]
    assert [name for name in operations if name in {"prepare", "endaccess", "cleanup"}] == [
        "prepare",
        "endaccess",
        "cleanup",
    ]
    prepared = next(request for request in site.lab.nfc.requests if request["op"] == "prepare")
    assert len(prepared["identity"]) == 50


def test_vms_in_their_dozens_ask_for_access_at_once_and_few_movers_are_started(
    site: VddkSite, movers: VddkMovers
) -> None:
    with ThreadPoolExecutor(24) as many:
        list(many.map(lambda number: movers.prepare_for_access("prod", f"vm-{number}", f"vrepl-{number}"), range(24)))
        list(many.map(lambda number: movers.end_access("prod", f"vm-{number}", f"vrepl-{number}"), range(24)))
    assert len(movers_of(movers)) <= BRIEF_CALLS
    asked = [request["op"] for request in site.lab.nfc.requests]
    assert (asked.count("prepare"), asked.count("endaccess")) == (24, 24)


def test_a_probe_tells_what_the_disk_is(site: VddkSite, movers: VddkMovers) -> None:
    seen = movers.probe(site.address(SOURCE), (0, 4 * GRAIN, CAPACITY - 512))
    assert (seen["mode"], seen["capacity"]) == ("nbdssl", CAPACITY)
    assert seen["uuid"]
    assert len(set(seen["samples"].values())) == 3


def test_a_folder_without_the_library_says_what_is_there(site: VddkSite, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    from vrepl.movers.settings import MoverSettings

    made = VddkMovers(site.connection, lambda name: MoverSettings(tmp_path / "empty"))
    with pytest.raises(LibraryError, match=r"libvixDiskLib\.so\.9 to libvixDiskLib\.so\.6"):
        made.probe(site.address(SOURCE))
    made.close()


@pytest.mark.parametrize("pair", [False, True], ids=["mover", "pair"])
def test_who_hears_of_the_progress_can_end_a_transfer(site: VddkSite, pair: bool) -> None:
    """As a run does whose replica is failed over from elsewhere: it ends soon, checkpointed, with the disk let go."""
    site.lab.set(latency_us=20_000)
    movers = VddkMovers(site.connection, site.settings, pair=pair)

    def refuse(progress: TransferProgress) -> None:
        raise NotReadyError("failed over meanwhile")

    try:
        with pytest.raises(NotReadyError, match="failed over meanwhile"):
            movers.transfer(site.order(), refuse)
        site.lab.set(latency_us=0)
        movers.transfer(resumed(site), ignore)
        assert site.target.content() == site.source.content()
    finally:
        movers.close()
