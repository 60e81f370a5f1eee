"""Disks that HotAdd put on this machine: the right device or none, and no write counts that may be lost."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.proxy_guest import UUID, WWID, FakeDesk, ProxyGuest
from vrepl.blockdev.disk import BlockDisk
from vrepl.blockdev.engine import BlockEngine
from vrepl.blockdev.guest import find_disk, wwid_of
from vrepl.errors import CbtError, DiskError, DiskLockedError, TransportModeError, VreplError
from vrepl.extents import GRAIN, Extent
from vrepl.model import TransportMode
from vrepl.movers.engine import EngineSettings
from vrepl.ports import AllocatedExtents, AttachedDisk, DiskAddress, DiskRequest, SiteConnection
from vrepl.transport.buffers import MIB, Buffer

CAPACITY = 3 * MIB + 1536
ATTACHED = AttachedDisk("prod", "vm-1", "[a] web/web.vmdk", "vm-9", 2001, 3, UUID, CAPACITY)
SITE = SiteConnection("vc", 443, 902, "user", "secret", "")
ADDRESS = DiskAddress(
    "prod", "vm-1", "snapshot-1", "[a] web/web.vmdk", CAPACITY, (TransportMode.HOTADD,), "web", "disk 0"
)


@pytest.fixture
def guest(tmp_path: Path) -> ProxyGuest:
    (tmp_path / "guest").mkdir()
    return ProxyGuest(tmp_path / "guest")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(os.urandom(MIB) + bytes(CAPACITY - MIB))
    return file


@pytest.fixture
def desk(guest: ProxyGuest, image: Path) -> FakeDesk:
    return FakeDesk(guest, image)


class Clock:
    """Time that passes by sleeping; what is planned for a moment happens then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.planned: list[tuple[float, Any]] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.planned and self.planned[0][0] <= self.now:
            self.planned.pop(0)[1]()


def find(guest: ProxyGuest, clock: Clock | None = None) -> str:
    clock = clock or Clock()
    return find_disk(guest.sysroot, ATTACHED, monotonic=clock, sleep=clock.sleep).name


def test_the_identity_is_the_uuid_as_a_naa_name() -> None:
    assert wwid_of(UUID) == WWID
    assert wwid_of("60 00 C2 91 a1 b2 c3 d4-e5 f6 01 23 45 67 89 ab") == WWID


def test_a_disk_is_found_among_others_whatever_its_name_and_controller(guest: ProxyGuest, image: Path) -> None:
    guest.add(image, unit=3, host=3, wwid="naa.6000c290000000000000000000000001")  # same unit, another controller
    right = guest.add(image, unit=3, host=2)
    guest.add(image, unit=4, wwid="naa.6000c290000000000000000000000002")  # the newest
    guest.add(image, unit=5, wwid="")
    assert find(guest) == right


def test_a_disk_that_comes_late_is_waited_for_and_the_bus_is_scanned(guest: ProxyGuest, image: Path) -> None:
    scan = guest.sysroot / "sys/class/scsi_host/host2/scan"
    scan.parent.mkdir(parents=True)
    scan.touch()
    clock = Clock()
    said: list[str] = []
    clock.planned = [
        (1.5, lambda: said.append(scan.read_text())),
        (5.0, lambda: said.append(scan.read_text())),
        (5.5, lambda: guest.add(image, unit=3)),
    ]
    assert find(guest, clock) == "sdb"
    assert said == ["", "- - -"]
    assert clock.now < 6


def refused(guest: ProxyGuest) -> DiskError:
    with pytest.raises(DiskError) as caught:
        find(guest)
    return caught.value


def test_a_disk_that_does_not_tell_its_identity_is_never_taken(guest: ProxyGuest, image: Path) -> None:
    guest.add(image, unit=3, wwid="")
    error = refused(guest)
    assert "does not tell its identity" in error.message
    assert "disk.EnableUUID" in str(error.hint)


def test_a_disk_that_never_comes_is_an_error_with_what_to_do(guest: ProxyGuest, image: Path) -> None:
    guest.add(image, unit=3, wwid="naa.6000c290000000000000000000000001")
    error = refused(guest)
    assert "saw no such disk within 60 s" in error.message
    assert error.hint


@pytest.mark.parametrize(("unit", "sectors"), [(4, None), (3, CAPACITY // 512 - 1)])
def test_the_identity_alone_is_not_enough(guest: ProxyGuest, image: Path, unit: int, sectors: int | None) -> None:
    guest.add(image, unit=unit, sectors=sectors)
    assert "instead of unit 3" in refused(guest).message


def test_two_disks_with_one_identity_are_none(guest: ProxyGuest, image: Path) -> None:
    guest.add(image, unit=3)
    guest.add(image, unit=5)
    error = refused(guest)
    assert "2 disks with the identity" in error.message
    assert "/dev/sdb, /dev/sdc" in error.message


IDENTITIES = st.sampled_from(
    [WWID, WWID.upper(), WWID[:-1], "naa.", "", "t10.ATA", "naa.6000c290000000000000000000000001"]
)
SHOWN = st.tuples(st.integers(0, 15), st.integers(2, 4), IDENTITIES, st.sampled_from([None, 1, CAPACITY // 512 + 1]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SHOWN, max_size=6, unique_by=lambda one: one[:2]))
@pytest.mark.slow
def test_whatever_a_machine_has_the_disk_found_is_the_one_or_none(
    image: Path, shown: list[tuple[int, int, str, int | None]]
) -> None:
    with tempfile.TemporaryDirectory() as root:
        machine = ProxyGuest(Path(root))
        names = [
            machine.add(image, unit=unit, host=host, wwid=wwid, sectors=sectors) for unit, host, wwid, sectors in shown
        ]
        same = [name for name, (_, _, wwid, _) in zip(names, shown, strict=True) if wwid == WWID]
        right = [
            name
            for name, (unit, _, wwid, sectors) in zip(names, shown, strict=True)
            if wwid == WWID and unit == ATTACHED.unit and sectors is None
        ]
        if right and len(same) == 1:
            assert find_disk(machine.sysroot, ATTACHED, within=0).name == right[0]
        else:
            with pytest.raises(DiskError):
                find_disk(machine.sysroot, ATTACHED, within=0)


# -- the engine --------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(guest: ProxyGuest, desk: FakeDesk) -> BlockEngine:
    made = EngineSettings(None, guest.sysroot, 1, 1, sysroot=guest.sysroot)
    return BlockEngine(made, lambda kind, text: None, desk, within=0.2)


def write(disk: BlockDisk, offset: int, data: bytes) -> VreplError | None:
    buffer = Buffer(MIB)
    buffer.view[: len(data)] = data
    answers: list[VreplError | None] = []
    disk.submit_write(offset, buffer, 0, len(data), answers.append)
    disk.wait()
    while not answers:
        pass
    return answers[0]


@pytest.mark.slow
def test_a_disk_that_is_not_the_right_one_is_detached_and_held_against_the_mode(
    engine: BlockEngine, desk: FakeDesk
) -> None:
    desk.wwid = "naa.6000c290000000000000000000000001"
    with pytest.raises(TransportModeError, match="saw no such disk") as caught:
        engine.open(ADDRESS, SITE, writable=True)
    assert (caught.value.mode, caught.value.side) == ("hotadd", "target")
    assert desk.hanging == {}
    assert desk.disk.read_bytes()[MIB:] == bytes(CAPACITY - MIB)


def test_what_the_control_process_refuses_is_held_against_the_mode_but_a_lock_is_not(
    engine: BlockEngine, desk: FakeDesk
) -> None:
    desk.refusal = DiskError("no slot is free", code=13, hint="another controller")
    with pytest.raises(TransportModeError, match="no slot is free, over hotadd") as caught:
        engine.open(ADDRESS, SITE, writable=False)
    assert (caught.value.hint, caught.value.side) == ("another controller", "source")
    desk.refusal = DiskLockedError("locked", code=15)
    with pytest.raises(DiskLockedError):
        engine.open(ADDRESS, SITE, writable=False)


def test_closing_detaches_and_nothing_else_does(engine: BlockEngine, desk: FakeDesk) -> None:
    disk = engine.open(ADDRESS, SITE, writable=True)
    assert write(disk, GRAIN, b"y" * GRAIN) is None
    disk.flush()
    assert len(desk.hanging) == 1
    disk.close()
    disk.close()
    assert desk.hanging == {}
    assert desk.asked == ["attach", "detach"]
    assert desk.disk.read_bytes()[GRAIN : 2 * GRAIN] == b"y" * GRAIN


def test_a_device_that_was_taken_away_is_noticed_before_anything_written_counts(
    engine: BlockEngine, desk: FakeDesk
) -> None:
    disk = engine.open(ADDRESS, SITE, writable=True)
    assert write(disk, GRAIN, b"y" * GRAIN) is None
    for attached in list(desk.hanging):
        desk.detach(attached)  # the open file takes writes still: so it can be with a device that is replaced
    for _ in range(2):
        with pytest.raises(TransportModeError, match="the device is gone"):
            disk.flush()
    disk.abandon()


def test_a_write_that_failed_is_not_forgotten_by_a_later_flush(
    engine: BlockEngine, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = engine.open(ADDRESS, SITE, writable=True)

    def no_space(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", no_space)
        error = write(disk, GRAIN, b"y" * GRAIN)
    assert isinstance(error, TransportModeError)
    assert (error.offset, error.side) == (GRAIN, "target")
    assert "No space left" in error.message
    assert write(disk, 0, b"x" * 512) is None
    with pytest.raises(TransportModeError, match="No space left"):
        disk.flush()
    with pytest.raises(TransportModeError, match="No space left"):
        disk.close()
    assert desk.hanging == {}, "it is detached all the same"


def test_short_reads_and_writes_are_carried_on(
    engine: BlockEngine, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda descriptor, views, offset: real(descriptor, [views[0][:4096]], offset))
    disk = engine.open(ADDRESS, SITE, writable=True)
    assert write(disk, GRAIN, b"y" * GRAIN) is None
    disk.close()
    assert desk.disk.read_bytes()[GRAIN : 2 * GRAIN] == b"y" * GRAIN


def test_what_is_allocated_is_asked_of_change_tracking_once_and_in_whole_grains(
    engine: BlockEngine, desk: FakeDesk
) -> None:
    desk.known = (Extent(GRAIN + 512, 512), Extent(CAPACITY - 512, 512))
    disk = engine.open(ADDRESS, SITE, writable=False)
    whole = Extent(0, CAPACITY)
    last = CAPACITY // GRAIN * GRAIN
    assert list(disk.allocated(whole)) == [Extent(GRAIN, GRAIN), Extent(last, CAPACITY - last)]
    assert list(disk.allocated(Extent(0, GRAIN))) == []
    assert desk.asked.count("allocated") == 1
    disk.close()


def test_where_change_tracking_does_not_tell_all_is_read(engine: BlockEngine, desk: FakeDesk) -> None:
    disk = engine.open(ADDRESS, SITE, writable=False)
    assert list(disk.allocated(Extent(0, CAPACITY))) == [Extent(0, CAPACITY)]
    disk.close()
    disk = engine.open(replace(ADDRESS, snapshot_ref=None), SITE, writable=True)
    assert list(disk.allocated(Extent(0, CAPACITY))) == [Extent(0, CAPACITY)]
    assert desk.asked.count("allocated") == 1, "a leaf is not asked about: what was written to it is not known there"
    disk.close()


def test_a_device_that_may_not_be_opened_says_who_may(
    engine: BlockEngine, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def denied(path: Any, *arguments: Any, **keywords: Any) -> int:
        if "/dev/sd" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", denied)
        with pytest.raises(TransportModeError, match="Permission denied") as caught:
            engine.open(ADDRESS, SITE, writable=False)
    assert "group that owns block devices" in str(caught.value.hint)
    assert desk.hanging == {}


# -- a real block device -----------------------------------------------------------------------------------------------


@pytest.fixture
def loop(image: Path) -> Iterator[Path]:
    """The image as a block device of the kernel's; needs root, and a kernel with loop devices."""
    os.truncate(image, 4 * MIB)
    try:
        done = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no loop device can be had here")
    device = Path(done.stdout.strip())
    yield device
    subprocess.run(["losetup", "--detach", str(device)], check=True)


@pytest.fixture
def attached(guest: ProxyGuest, loop: Path) -> AttachedDisk:
    size = 4 * MIB
    guest.add(loop, unit=3, sectors=size // 512)
    number = loop.stat().st_rdev
    (guest.sysroot / "sys/bus/scsi/devices/2:0:3:0/block/sdb/dev").write_text(
        f"{os.major(number)}:{os.minor(number)}\n"
    )
    return replace(ATTACHED, capacity=size)


class OneDisk:
    """A `ports.ControlDesk` whose disk hangs there all the time."""

    def __init__(self, disk: AttachedDisk) -> None:
        self.disk = disk
        self.detached = 0

    def attach(self, request: DiskRequest) -> AttachedDisk:
        return self.disk

    def detach(self, disk: AttachedDisk) -> None:
        self.detached += 1

    def allocated(self, request: DiskRequest) -> AllocatedExtents:
        raise CbtError("it does not tell")


def opened(guest: ProxyGuest, desk: OneDisk, *, writable: bool) -> BlockDisk:
    made = EngineSettings(None, guest.sysroot, 1, 1, sysroot=guest.sysroot)
    engine = BlockEngine(made, lambda kind, text: None, desk, within=0.2)
    return engine.open(replace(ADDRESS, capacity=desk.disk.capacity), SITE, writable=writable)


def test_a_block_device_is_written_past_the_cache_and_read_back(
    guest: ProxyGuest, attached: AttachedDisk, image: Path
) -> None:
    desk = OneDisk(attached)
    disk = opened(guest, desk, writable=True)
    assert write(disk, GRAIN, b"y" * GRAIN) is None
    assert write(disk, 4 * MIB - 512, b"z" * 512) is None
    disk.flush()
    assert image.read_bytes()[GRAIN : 2 * GRAIN] == b"y" * GRAIN
    disk.close()
    assert image.read_bytes()[-512:] == b"z" * 512
    assert desk.detached == 1


def test_a_block_device_that_something_else_has_taken_is_not_written(
    guest: ProxyGuest, attached: AttachedDisk, loop: Path
) -> None:
    desk = OneDisk(attached)
    taken = os.open(loop, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(TransportModeError, match="cannot be opened") as caught:
            opened(guest, desk, writable=True)
        assert "uses the disk" in str(caught.value.hint)
        opened(guest, desk, writable=False).close()
    finally:
        os.close(taken)


def test_a_node_that_is_another_device_than_the_disk_is_not_used(guest: ProxyGuest, attached: AttachedDisk) -> None:
    (guest.sysroot / "sys/bus/scsi/devices/2:0:3:0/block/sdb/dev").write_text("8:240\n")
    with pytest.raises(TransportModeError, match="/sys says 8:240 of it"):
        opened(guest, OneDisk(attached), writable=True)
