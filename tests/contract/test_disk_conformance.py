"""What every DiskReader and DiskWriter promises, run against all that there are.

An implementation joins by a factory in `DISKS`: a context manager that gives a `Subject` over a disk of
CAPACITY bytes that is allocated, and holds PATTERN, in its third and its last grain only.
"""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api, proxy_vm
from tests.support.memory_disk import MemoryDisk, MemoryHandle
from tests.support.nfc_host import PATH, Trouble, nfc_host
from tests.support.proxy_guest import FakeDesk, ProxyGuest
from tests.support.site_access import pinned_settings_of
from tests.support.vddk_site import SOURCE, make_site
from tests.support.vixdisklib_lab import FakeLab
from vrepl.app.attachments import Attachments
from vrepl.blockdev.engine import BlockEngine
from vrepl.errors import DiskError, MoverError, VreplError
from vrepl.extents import GRAIN, Extent, intersect, normalise, subtract
from vrepl.model import TransportMode
from vrepl.movers import messages
from vrepl.movers.engine import DiskEngine, EngineSettings
from vrepl.movers.process import MoverProcess, Spawner
from vrepl.nfc import engine as nfc_engine
from vrepl.ports import DiskAddress, SiteConnection
from vrepl.proxy.facts import product_uuid
from vrepl.stream.remote import RemoteDisk
from vrepl.stream.serve import serve_disk
from vrepl.transport.buffers import MIB, Buffer
from vrepl.transport.decorators import CountingDisk, FailingDisk, LateDisk, ThrottledDisk
from vrepl.transport.disk import DiskReader, DiskWriter
from vrepl.transport.throttle import Throttle
from vrepl.vddk.disk import AsyncDisk, DirectDisk
from vrepl.vddk.handles import DiskInfo
from vrepl.vsphere.site import VsphereSite
from vrepl_lab.lab import Lab
from vrepl_lab.spec import DiskSpec, LabSpec, VmSpec

CAPACITY = 5 * MIB + 3 * GRAIN + 1536
LAST = CAPACITY // GRAIN
PATTERN = bytes(range(256)) * (GRAIN // 256)
HOLES = subtract([Extent(0, CAPACITY)], [Extent(2 * GRAIN, GRAIN), Extent(LAST * GRAIN, CAPACITY - LAST * GRAIN)])


@dataclass
class Subject:
    """One disk that can be opened; a reader sees what a writer flushed or closed."""

    reader: Callable[[], DiskReader]
    writer: Callable[[], DiskWriter]


def memory_disk() -> MemoryDisk:
    disk = MemoryDisk(CAPACITY)
    disk.write(2 * GRAIN, PATTERN)
    disk.write(LAST * GRAIN, PATTERN[: CAPACITY - LAST * GRAIN])
    return disk


@contextmanager
def memory() -> Iterator[Subject]:
    disk = memory_disk()
    yield Subject(lambda: MemoryHandle(disk), lambda: MemoryHandle(disk, writable=True))


@contextmanager
def decorated(wrap: Callable[[DiskReader], DiskWriter]) -> Iterator[Subject]:
    with memory() as inner:
        yield Subject(lambda: wrap(inner.reader()), lambda: wrap(inner.writer()))


@contextmanager
def remote() -> Iterator[Subject]:
    """Over a socket pair, to a thread that serves a memory disk."""
    disk = memory_disk()
    with ExitStack() as stack:

        def connect(writable: bool) -> RemoteDisk:
            near, far = socket.socketpair()
            thread = threading.Thread(
                target=serve_disk, args=(lambda: MemoryHandle(disk, writable=writable), far), daemon=True
            )
            thread.start()
            stack.callback(far.close)
            stack.callback(thread.join)
            stack.callback(near.close)
            return RemoteDisk(near)

        yield Subject(lambda: connect(False), lambda: connect(True))


class FakeHandle:
    """A VDDK handle over a memory disk: asynchronous calls complete in threads of their own, out of order."""

    def __init__(self, disk: MemoryDisk, mode: str, writable: bool) -> None:
        self.mode = mode
        self._inner = MemoryHandle(disk, writable=writable, mode=mode)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(4)

    def info(self) -> DiskInfo:
        return DiskInfo(self._inner.capacity, 3, 1, "6000C290")

    def read(self, offset: int, length: int, address: int) -> None:
        buffer = Buffer(MIB)
        self._do(lambda done: self._inner.submit_read(offset, buffer, 0, length, done))
        ctypes.memmove(address, buffer.address, length)

    def write(self, offset: int, length: int, address: int) -> None:
        buffer = Buffer(MIB)
        ctypes.memmove(buffer.address, address, length)
        self._do(lambda done: self._inner.submit_write(offset, buffer, 0, length, done))

    def _do(self, call: Callable[[Callable[[VreplError | None], None]], None]) -> None:
        with self._lock:
            errors: list[VreplError | None] = []
            call(errors.append)
            if errors[0] is not None:
                raise errors[0]

    def read_async(self, offset: int, length: int, address: int, done: Callable[[VreplError | None], None]) -> None:
        self._pool.submit(self._then, lambda: self.read(offset, length, address), done)

    def write_async(self, offset: int, length: int, address: int, done: Callable[[VreplError | None], None]) -> None:
        self._pool.submit(self._then, lambda: self.write(offset, length, address), done)

    @staticmethod
    def _then(call: Callable[[], None], done: Callable[[VreplError | None], None]) -> None:
        try:
            call()
        except DiskError as error:
            done(error)
        else:
            done(None)

    def wait(self) -> None:
        """The tests wait for each completion themselves."""

    def flush(self) -> None:
        self._inner.flush()

    def allocated(self, start: int, length: int, chunk: int) -> list[Extent]:
        assert chunk >= 128 * 512
        assert length // chunk <= 512 * 1024
        if start + length > self._inner.capacity or length % chunk:
            raise DiskError("One of the parameters was invalid", code=3)
        return list(self._inner.allocated(Extent(start, length)))

    def close(self) -> None:
        self._pool.shutdown()
        self._inner.close()


@contextmanager
def vddk(mode: str) -> Iterator[Subject]:
    """vrepl's disks over a handle that is not VDDK's."""
    disk = memory_disk()

    def open_disk(writable: bool) -> DiskWriter:
        if mode == "nbdssl":
            return AsyncDisk(FakeHandle(disk, mode, writable))
        return DirectDisk(lambda: (FakeHandle(disk, mode, writable), lambda: None), 1 if writable else 2)

    yield Subject(lambda: open_disk(False), lambda: open_disk(True))


@contextmanager
def lab_library(fake_lab: FakeLab) -> Iterator[Subject]:
    """The lab's libvixDiskLib in a data mover, which serves the disk over a stream."""
    present = {2: PATTERN, LAST: PATTERN[: CAPACITY - LAST * GRAIN]}
    site = make_site(fake_lab, CAPACITY, present)
    spawner = Spawner()
    with ExitStack() as stack:
        stack.callback(spawner.end)

        def connect(writable: bool) -> RemoteDisk:
            near, far = socket.socketpair()
            with far:
                mover = MoverProcess(site.settings(), spawner, pass_fds=[far.fileno()])
                stream = far.fileno()
            arguments: dict[str, Any] = {
                "address": messages.encode(site.address(SOURCE)),
                "sites": {"prod": messages.encode(site.connection("prod"))},
            }

            def serve() -> None:
                with suppress(MoverError):  # a test that failed leaves its disk open
                    mover.request("serve", stream=stream, writable=writable, **arguments)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            stack.callback(mover.close)
            stack.callback(thread.join)
            stack.callback(near.close)
            return RemoteDisk(near)

        yield Subject(lambda: connect(False), lambda: connect(True))


@contextmanager
def nfc(mode: str, folder: Path, trouble: Callable[[Trouble], None] = lambda trouble: None) -> Iterator[Subject]:
    """vrepl's own NBD against a small host that was written from the same descriptions, without sight of it."""
    with nfc_host(memory_disk(), folder) as host:
        trouble(host.trouble)
        compression = "skipz" if host.trouble.pack else "none"
        settings = EngineSettings(None, folder, buffer_units=1, buffer_count=16, readback="all")
        engine = nfc_engine.start(settings, lambda kind, text: None, host.ticket)
        address = DiskAddress("prod", "vm-1", None, PATH, CAPACITY, (TransportMode(mode),), "vm", "disk")
        site = SiteConnection("127.0.0.1", 443, 902, "user", "secret", "", compression)

        yield Subject(
            lambda: engine.open(address, site, writable=False), lambda: engine.open(address, site, writable=True)
        )


@contextmanager
def block(folder: Path) -> Iterator[Subject]:
    """A block device that HotAdd put on a machine, which a folder stands for."""
    image = folder / "disk"
    with image.open("wb") as file:
        file.truncate(CAPACITY)
        for grain in (2, LAST):
            file.seek(grain * GRAIN)
            file.write(PATTERN[: CAPACITY - grain * GRAIN])
    guest = ProxyGuest(folder / "guest")
    guest.sysroot.mkdir()
    settings = EngineSettings(None, folder, buffer_units=1, buffer_count=1, sysroot=guest.sysroot)
    desk = FakeDesk(guest, image)
    engine = BlockEngine(settings, lambda kind, text: None, desk)
    address = DiskAddress("prod", "vm-1", "snapshot-1", PATH, CAPACITY, (TransportMode.HOTADD,), "vm", "disk")
    site = SiteConnection("127.0.0.1", 443, 902, "user", "secret", "")
    yield opened_by(engine, address, site)
    assert desk.hanging == {}


CONFORMING = "conforming-01"


@contextmanager
def conforming(lab: Lab) -> Iterator[tuple[VsphereSite, Callable[[TransportMode], DiskAddress]]]:
    """The lab's disk as each test wants to find it: its site, and its address over a mode."""
    lab.unmap("prod", CONFORMING, 0, 0, CAPACITY)
    lab.write("prod", CONFORMING, 0, 2 * GRAIN, PATTERN)
    lab.write("prod", CONFORMING, 0, LAST * GRAIN, PATTERN[: CAPACITY - LAST * GRAIN])
    with VsphereSite(pinned_settings_of(lab, "prod")) as site, plain_api.session(lab) as api:
        vm = plain_api.vm_named(api, CONFORMING)
        path = str(plain_api.disk_path(vm.config))
        yield site, lambda mode: DiskAddress("prod", vm._moId, None, path, CAPACITY, (mode,), "vm", "disk")


def opened_by(engine: DiskEngine, address: DiskAddress, site: SiteConnection) -> Subject:
    return Subject(
        lambda: engine.open(address, site, writable=False), lambda: engine.open(address, site, writable=True)
    )


@contextmanager
def lab_block(lab: Lab) -> Iterator[Subject]:
    """The same, attached to the lab's proxy VM by its vCenter."""
    with conforming(lab) as (site, address):
        root = proxy_vm.sysroot(lab)
        desk = Attachments(
            lambda name: site, lambda name: product_uuid(root), lambda name: product_uuid(root), lambda: "r"
        ).desk(lambda: True)
        engine = BlockEngine(
            EngineSettings(None, Path("/"), buffer_units=1, buffer_count=1, sysroot=root), lambda kind, text: None, desk
        )
        yield opened_by(engine, address(TransportMode.HOTADD), site.connection())
        assert proxy_vm.hanging(lab, "prod") == []


def packed(trouble: Trouble) -> None:
    trouble.shuffle, trouble.pack = True, 3


@contextmanager
def lab_nfc(lab: Lab) -> Iterator[Subject]:
    """vrepl's own NBD against the lab's hosts, of another language and another hand."""
    with conforming(lab) as (site, address):
        engine = nfc_engine.start(
            EngineSettings(None, Path("/"), buffer_units=1, buffer_count=16, readback="all"),
            lambda kind, text: None,
            lambda request: site.nfc_ticket(request.vm_ref, request.path, writable=request.writable),
        )
        yield opened_by(engine, address(TransportMode.NBDSSL), site.connection())


@pytest.fixture(scope="module")
def conformance_lab(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    disk = DiskSpec(CAPACITY, content="empty")
    made = start_shared_lab(LabSpec.of_vms(VmSpec(CONFORMING, disks=(disk,), power="poweredOff", tools="notRunning")))
    made.set("lock_linger_s=0")
    return made


DISKS: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[Subject]]] = {
    "memory": lambda request: memory(),
    "counting": lambda request: decorated(CountingDisk),
    "failing": lambda request: decorated(lambda disk: FailingDisk(disk, {})),
    "late": lambda request: decorated(LateDisk),
    "throttled": lambda request: decorated(lambda disk: ThrottledDisk(disk, Throttle(1 << 34))),
    "remote": lambda request: remote(),
    "vddk-asynchronous": lambda request: vddk("nbdssl"),
    "vddk-direct": lambda request: vddk("hotadd"),
    "nfc-nbdssl": lambda request: nfc("nbdssl", request.getfixturevalue("tmp_path")),
    "nfc-nbd": lambda request: nfc("nbd", request.getfixturevalue("tmp_path")),
    "nfc-skipz-shuffled": lambda request: nfc("nbdssl", request.getfixturevalue("tmp_path"), packed),
    "block": lambda request: block(request.getfixturevalue("tmp_path")),
    "lab-block": lambda request: lab_block(request.getfixturevalue("conformance_lab")),
    "lab-nfc": lambda request: lab_nfc(request.getfixturevalue("conformance_lab")),
    "lab-library": lambda request: lab_library(request.getfixturevalue("fake_lab")),
}


@pytest.fixture(params=sorted(DISKS))
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with DISKS[request.param](request) as made:
        yield made


class Call:
    """A completion that can be waited for, and that must come once."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.error: VreplError | None = None
        self.calls = 0

    def __call__(self, error: VreplError | None) -> None:
        self.calls += 1
        self.error = error
        self._event.set()

    def result(self) -> VreplError | None:
        assert self._event.wait(20), "no completion"
        return self.error


def read(disk: DiskReader, offset: int, length: int) -> bytes:
    buffer, call = Buffer(MIB), Call()
    disk.submit_read(offset, buffer, 0, length, call)
    assert call.result() is None
    return bytes(buffer.view[:length])


def write(disk: DiskWriter, offset: int, data: bytes) -> None:
    buffer, call = Buffer(MIB), Call()
    buffer.view[: len(data)] = data
    disk.submit_write(offset, buffer, 0, len(data), call)
    assert call.result() is None


def test_it_says_its_size_and_what_carries_it(subject: Subject) -> None:
    disk = subject.reader()
    assert disk.capacity == CAPACITY
    assert disk.mode
    assert disk.working_set >= disk.block
    disk.close()


def test_it_reads_data_and_holes(subject: Subject) -> None:
    disk = subject.reader()
    assert read(disk, 2 * GRAIN, GRAIN) == PATTERN
    assert read(disk, GRAIN, 2 * GRAIN) == bytes(GRAIN) + PATTERN
    assert read(disk, 2 * GRAIN + 512, 512) == PATTERN[512:1024]
    assert read(disk, CAPACITY - 512, 512) == PATTERN[1024:1536]
    disk.close()


def test_a_read_fills_only_its_part_of_the_buffer(subject: Subject) -> None:
    disk, buffer, call = subject.reader(), Buffer(MIB), Call()
    buffer.view[:] = b"\xaa" * MIB
    disk.submit_read(2 * GRAIN, buffer, GRAIN, 1024, call)
    assert call.result() is None
    assert bytes(buffer.view[GRAIN : GRAIN + 1024]) == PATTERN[:1024]
    assert set(buffer.view[:GRAIN]) == set(buffer.view[GRAIN + 1024 :]) == {0xAA}
    disk.close()


def test_what_it_calls_a_hole_reads_as_zeros_and_data_is_never_called_a_hole(subject: Subject) -> None:
    disk = subject.reader()
    found = list(disk.allocated(Extent(0, CAPACITY)))
    assert found == normalise(found)
    assert subtract([Extent(0, CAPACITY)], HOLES) == intersect(found, subtract([Extent(0, CAPACITY)], HOLES)), (
        "data was called a hole"
    )
    disk.close()


@pytest.mark.parametrize(
    "extent", [Extent(GRAIN, GRAIN), Extent(2 * GRAIN, GRAIN), Extent(4 * MIB, CAPACITY - 4 * MIB)]
)
def test_allocated_stays_within_what_was_asked(subject: Subject, extent: Extent) -> None:
    disk = subject.reader()
    found = list(disk.allocated(extent))
    assert intersect(found, [extent]) == found
    assert intersect(subtract([extent], HOLES), found) == subtract([extent], HOLES)
    disk.close()


def test_many_reads_in_flight_complete_once_each(subject: Subject) -> None:
    disk = subject.reader()
    buffers, calls = [], []
    for number in range(24):
        buffers.append(Buffer(GRAIN))
        calls.append(Call())
        disk.submit_read((number % 8) * GRAIN, buffers[-1], 0, GRAIN, calls[-1])
    assert [call.result() for call in calls] == [None] * 24
    for number, buffer in enumerate(buffers):
        assert bytes(buffer.view) == (PATTERN if number % 8 == 2 else bytes(GRAIN))
    disk.close()
    assert {call.calls for call in calls} == {1}


def test_a_writer_reads_back_what_it_wrote_before_flushing(subject: Subject) -> None:
    disk = subject.writer()
    write(disk, GRAIN + 512, b"x" * 512)
    assert read(disk, GRAIN, 2048) == bytes(512) + b"x" * 512 + bytes(1024)
    disk.close()


def test_what_is_flushed_or_closed_is_there_for_the_next_reader(subject: Subject) -> None:
    disk = subject.writer()
    write(disk, MIB - 512, b"a" * 2048)
    write(disk, CAPACITY - 512, b"z" * 512)
    disk.wait()
    disk.flush()
    write(disk, 3 * MIB, b"b" * GRAIN)
    disk.close()
    again = subject.reader()
    assert read(again, MIB - 1024, 3072) == bytes(512) + b"a" * 2048 + bytes(512)
    assert read(again, 3 * MIB, GRAIN) == b"b" * GRAIN
    assert read(again, CAPACITY - 512, 512) == b"z" * 512
    assert read(again, 2 * GRAIN, GRAIN) == PATTERN
    again.close()


def test_zeros_replace_data(subject: Subject) -> None:
    disk, call = subject.writer(), Call()
    disk.submit_zeros(2 * GRAIN + 512, 1024, call)
    assert call.result() is None
    disk.wait()
    disk.flush()
    assert read(disk, 2 * GRAIN, GRAIN) == PATTERN[:512] + bytes(1024) + PATTERN[1536:]
    disk.close()
    again = subject.reader()
    assert read(again, 2 * GRAIN, GRAIN) == PATTERN[:512] + bytes(1024) + PATTERN[1536:]
    again.close()


def test_many_writes_in_flight_all_arrive(subject: Subject) -> None:
    disk = subject.writer()
    buffers, calls = [], []
    for number in range(40):
        buffers.append(Buffer(GRAIN))
        buffers[-1].view[:] = bytes([number + 1]) * GRAIN
        calls.append(Call())
        disk.submit_write(number * GRAIN, buffers[-1], 0, GRAIN, calls[-1])
    assert [call.result() for call in calls] == [None] * 40
    disk.wait()
    disk.flush()
    disk.close()
    again = subject.reader()
    assert all(read(again, number * GRAIN, GRAIN) == bytes([number + 1]) * GRAIN for number in range(40))
    again.close()


def test_outside_the_disk_is_an_error_that_names_the_offset(subject: Subject) -> None:
    disk, call = subject.reader(), Call()
    buffer = Buffer(GRAIN)
    disk.submit_read(CAPACITY - 512, buffer, 0, 1024, call)
    error = call.result()
    assert isinstance(error, DiskError)
    assert error.offset == CAPACITY - 512
    assert error.code is not None
    assert read(disk, 0, 512) == bytes(512), "the handle must still work"
    disk.close()


def test_a_reader_refuses_to_write(subject: Subject) -> None:
    disk, call, buffer = subject.reader(), Call(), Buffer(GRAIN)
    disk.submit_write(0, buffer, 0, 512, call)  # type: ignore[attr-defined]
    assert isinstance(call.result(), DiskError)
    disk.close()


def test_close_is_idempotent(subject: Subject) -> None:
    for open_disk in (subject.reader, subject.writer):
        disk = open_disk()
        disk.close()
        disk.close()
