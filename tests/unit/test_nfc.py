"""NFC by vrepl itself: whom it trusts, what counts as written, and what it does when a host goes wrong."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.memory_disk import MemoryDisk, MemoryHandle
from tests.support.memory_records import MemoryDigests, MemoryLog
from tests.support.nfc_host import PATH, NfcHost, nfc_host
from vrepl.errors import (
    CbtError,
    CertificateError,
    DiskError,
    NfcMemoryError,
    TransientDiskError,
    TransportModeError,
    VreplError,
)
from vrepl.extents import GRAIN, Extent, intersect
from vrepl.model import TransferKind, TransportMode
from vrepl.movers.engine import EngineSettings
from vrepl.nfc import frames
from vrepl.nfc import session as session_module
from vrepl.nfc.channel import Channel
from vrepl.nfc.disk import NfcDisk
from vrepl.nfc.engine import NfcEngine, start
from vrepl.nfc.readback import LATEST, Readback, WrittenSince, digests_of
from vrepl.nfc.requests import Write
from vrepl.ports import (
    AllocatedExtents,
    AttachedDisk,
    DigestFiles,
    DiskAddress,
    DiskRequest,
    NfcTicket,
    SiteConnection,
    TicketRequest,
    TransferOrder,
)
from vrepl.transport.buffers import MIB, Buffer, Hashed
from vrepl.transport.grains import ZERO_DIGEST
from vrepl.transport.transfer import copy_disk
from vrepl_lab.certificates import Authority

CAPACITY = 4 * MIB + 512
SITE = SiteConnection("vcenter", 443, 902, "user", "site-secret", "")
ADDRESS = DiskAddress("prod", "vm-1", None, PATH, CAPACITY, (TransportMode.NBDSSL,), "vm", "disk")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[NfcHost]:
    disk = MemoryDisk(CAPACITY)
    disk.write(GRAIN, b"data" * (GRAIN // 4))
    with nfc_host(disk, tmp_path) as made:
        yield made


def engine_for(
    host: NfcHost, tickets: Callable[[TicketRequest], NfcTicket] | None = None, **changes: str | int
) -> NfcEngine:
    given_settings = {"buffer_units": 1, "buffer_count": 16} | changes
    return start(EngineSettings(None, Path("/"), **given_settings), lambda kind, text: None, tickets or host.ticket)  # type: ignore[arg-type]


def open_disk(host: NfcHost, *, writable: bool = False, **changes: str | int) -> NfcDisk:
    return engine_for(host, None, **changes).open(ADDRESS, SITE, writable=writable)


def read(disk: NfcDisk, offset: int, length: int) -> bytes:
    buffer, answers = Buffer(2 * MIB), SimpleQueue[VreplError | None]()
    disk.submit_read(offset, buffer, 0, length, answers.put)
    error = answers.get(timeout=20)
    if error is not None:
        raise error
    return bytes(buffer.view[:length])


def write(disk: NfcDisk, offset: int, data: bytes) -> None:
    buffer, answers = Buffer(2 * MIB), SimpleQueue[VreplError | None]()
    buffer.view[: len(data)] = data
    disk.submit_write(offset, buffer, 0, len(data), answers.put)
    error = answers.get(timeout=20)
    if error is not None:
        raise error


# -- whom it trusts --------------------------------------------------------------------------------------------------


def test_the_first_certificate_must_be_the_tickets(host: NfcHost) -> None:
    host.trouble.first_certificate = Authority("another").issue(["127.0.0.1"])
    with pytest.raises(CertificateError, match="not that of the ticket") as caught:
        open_disk(host)
    assert caught.value.hint


def test_the_second_certificate_must_be_the_first(host: NfcHost) -> None:
    host.trouble.second_certificate = Authority("another").issue(["127.0.0.1"])
    with pytest.raises(CertificateError, match="another certificate than the first") as caught:
        open_disk(host)
    assert caught.value.hint


def test_what_the_host_says_of_its_certificate_must_be_true(host: NfcHost) -> None:
    host.trouble.told_sha256 = Authority("another").issue(["127.0.0.1"]).sha256_thumbprint
    with pytest.raises(CertificateError, match="calls its certificate") as caught:
        open_disk(host)
    assert caught.value.hint


def test_a_wrong_certificate_is_told_nothing(host: NfcHost) -> None:
    """The ticket stays unspent: it was not said to whom it does not belong."""
    given_tickets: list[NfcTicket] = []

    def tickets(request: TicketRequest) -> NfcTicket:
        given_tickets.append(host.ticket(request))
        return given_tickets[-1]

    host.trouble.first_certificate = Authority("another").issue(["127.0.0.1"])
    with pytest.raises(CertificateError):
        engine_for(host, tickets).open(ADDRESS, SITE, writable=False)
    assert host.spend(given_tickets[0].session_id) is False


def test_a_ticket_serves_once(host: NfcHost) -> None:
    ticket = host.ticket(TicketRequest("prod", "vm-1", PATH, False))
    engine = engine_for(host, lambda request: ticket)
    engine.open(ADDRESS, SITE, writable=False).close()
    with pytest.raises(DiskError, match="does not take the ticket") as caught:
        engine.open(ADDRESS, SITE, writable=False)
    assert "serves once" in str(caught.value.hint)
    assert ticket.session_id not in str(caught.value)
    assert ticket.session_id not in repr(ticket)


def test_a_ticket_cannot_say_more_than_itself(host: NfcHost) -> None:
    good = host.ticket(TicketRequest("prod", "vm-1", PATH, False))
    bad = NfcTicket(good.host, good.port, good.sha1_thumbprint, good.service, "x\r\nPROXY other")
    with pytest.raises(DiskError, match="cannot be presented"):
        engine_for(host, lambda request: bad).open(ADDRESS, SITE, writable=False)
    assert host.connections == 0


def test_an_old_host_is_told_apart(host: NfcHost) -> None:
    host.trouble.banner = host.trouble.banner.replace(", SHA256 supported", "")
    with pytest.raises(DiskError, match="does not offer SHA256") as caught:
        open_disk(host)
    assert "VDDK" in str(caught.value.hint)


def test_something_else_on_the_port_is_said(host: NfcHost) -> None:
    for banner in ("SSH-2.0-OpenSSH_9.6\r\n", "x" * 3000 + "\r\n"):
        host.trouble.banner = banner
        with pytest.raises(DiskError) as caught:
            open_disk(host)
        assert caught.value.hint


def test_a_closed_port_names_host_and_port(host: NfcHost) -> None:
    ticket = host.ticket(TicketRequest("prod", "vm-1", PATH, False))
    host.close()
    with pytest.raises(TransientDiskError, match=f"127.0.0.1:{host.port}") as caught:
        engine_for(host, lambda request: ticket).open(ADDRESS, SITE, writable=False)
    assert caught.value.code == 14009


def test_a_refused_ticket_is_a_disk_error(host: NfcHost) -> None:
    def tickets(request: TicketRequest) -> NfcTicket:
        raise VreplError("NfcGetVmFiles: no permission", hint="a privilege")

    with pytest.raises(DiskError, match="no ticket for") as caught:
        engine_for(host, tickets).open(ADDRESS, SITE, writable=False)
    assert caught.value.hint == "a privilege"


# -- the disk --------------------------------------------------------------------------------------------------------


def test_it_says_what_the_disk_is(host: NfcHost) -> None:
    disk = open_disk(host)
    assert (disk.capacity, disk.uuid, disk.mode) == (CAPACITY, "60 00 C2 90", "nbdssl")
    assert host.handshakes == [(43, 33, 51, 54, 55, 52)]
    assert host.asked_buffers == [(GRAIN, 16)]
    disk.close()


def test_a_disk_of_another_vm_is_refused_with_the_hosts_words(host: NfcHost) -> None:
    address = DiskAddress("prod", "vm-1", None, "[store] x/x.vmdk", CAPACITY, (TransportMode.NBDSSL,), "vm", "disk")
    ticket = host.ticket(TicketRequest("prod", "vm-1", PATH, False))
    with pytest.raises(DiskError, match="permission check failed") as caught:
        engine_for(host, lambda request: ticket).open(address, SITE, writable=False)
    assert caught.value.code == 11


def test_where_other_modes_are_left_the_mode_is_to_blame(host: NfcHost) -> None:
    modes = (TransportMode.NBDSSL, TransportMode.NBD)
    address = DiskAddress("prod", "vm-1", None, PATH, CAPACITY, modes, "vm", "disk")
    host.trouble.error_on[4] = (6, "no such thing")
    with pytest.raises(TransportModeError) as caught:
        engine_for(host).open(address, SITE, writable=True)
    assert (caught.value.mode, caught.value.side) == ("nbdssl", "target")


def test_a_host_without_memory_makes_buffers_smaller(host: NfcHost) -> None:
    host.trouble.error_on[2] = (5, "Failed to allocate the requested 1048576 bytes")
    with pytest.raises(NfcMemoryError):
        open_disk(host)


@pytest.mark.slow
def test_a_host_that_cannot_tell_what_is_allocated_costs_reading_only(host: NfcHost) -> None:
    disk = open_disk(host)
    assert list(disk.allocated(Extent(0, CAPACITY))) == [Extent(GRAIN, GRAIN), Extent(4 * MIB, 512)]
    disk.close()
    host.trouble.no_map = True
    disk = open_disk(host)
    assert list(disk.allocated(Extent(0, CAPACITY))) == [Extent(0, CAPACITY)]
    assert read(disk, GRAIN, 4) == b"data"
    assert host.connections == 2
    disk.close()


@pytest.mark.slow
def test_where_a_host_cannot_tell_change_tracking_is_asked_of_a_snapshots_disk(host: NfcHost) -> None:
    host.trouble.no_map = True
    asked: list[DiskRequest] = []

    class Desk:
        def attach(self, request: DiskRequest) -> AttachedDisk:
            raise NotImplementedError

        def detach(self, disk: AttachedDisk) -> None:
            raise NotImplementedError

        def allocated(self, request: DiskRequest) -> AllocatedExtents:
            asked.append(request)
            if len(asked) > 1:
                raise CbtError("it cannot tell")
            return AllocatedExtents((Extent(GRAIN + 512, 512), Extent(4 * MIB, 512)))

    engine = start(EngineSettings(None, Path("/"), 1, 16), lambda kind, text: None, host.ticket, Desk())
    address = replace(ADDRESS, snapshot_ref="snapshot-1")
    for expected in ([Extent(GRAIN, GRAIN), Extent(4 * MIB, 512)], [Extent(0, CAPACITY)]):
        disk = engine.open(address, SITE, writable=False)
        assert list(disk.allocated(Extent(0, CAPACITY))) == expected
        assert list(disk.allocated(Extent(0, GRAIN))) == intersect(expected, [Extent(0, GRAIN)])
        disk.close()
    assert asked == [DiskRequest("prod", "vm-1", "snapshot-1", PATH, False)] * 2, "once for each time it is opened"


def test_never_more_in_flight_than_the_host_was_asked_for(host: NfcHost, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = session_module.Session._next_record

    def watch(self: session_module.Session) -> bool:
        seen.append(self._bytes_flying)
        return original(self)

    monkeypatch.setattr(session_module.Session, "_next_record", watch)
    disk = open_disk(host, buffer_count=2)
    buffers = [Buffer(GRAIN) for _ in range(20)]
    answers: SimpleQueue[VreplError | None] = SimpleQueue()
    for number, buffer in enumerate(buffers):
        disk.submit_read(number * GRAIN, buffer, 0, GRAIN, answers.put)
    assert [answers.get(timeout=20) for _ in buffers] == [None] * 20
    assert 0 < max(seen) <= 2 * GRAIN
    disk.close()


# -- what was written --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_writes_count_after_the_close_only_and_are_read_back(host: NfcHost) -> None:
    disk = open_disk(host, writable=True)
    write(disk, 0, b"w" * GRAIN)
    disk.wait()
    assert host.disk.read(0, 4) == bytes(4), "the host keeps it until the disk is closed"
    before = host.connections
    disk.flush()
    assert host.disk.read(0, 4) == b"wwww"
    assert host.connections == before + 1, "read back through a new session"
    disk.flush()
    assert host.connections == before + 1, "nothing was written since"
    write(disk, 0, b"v" * GRAIN)
    disk.close()
    assert host.disk.read(0, 4) == b"vvvv"


@pytest.mark.parametrize("end", [NfcDisk.flush, NfcDisk.close])
@pytest.mark.slow
def test_what_a_host_lost_is_found_by_reading_back(host: NfcHost, end: Callable[[NfcDisk], None]) -> None:
    host.trouble.lose_writes = True
    disk = open_disk(host, writable=True)
    write(disk, 0, b"w" * GRAIN)
    with pytest.raises(DiskError, match="other bytes at offset 0 than were written"):
        end(disk)
    disk.abandon()


def test_a_close_that_the_host_refuses_is_no_flush(host: NfcHost) -> None:
    disk = open_disk(host, writable=True)
    write(disk, 0, b"w" * GRAIN)
    host.trouble.error_on[5] = (8, "No space left on device")
    with pytest.raises(DiskError, match="closing the disk") as caught:
        disk.flush()
    assert caught.value.code == 8
    with pytest.raises(DiskError):
        disk.close()
    assert host.disk.read(0, 4) == bytes(4)


def test_a_write_that_failed_is_never_flushed(host: NfcHost) -> None:
    disk = open_disk(host, writable=True)
    host.trouble.error_on[7] = (14011, "")
    with pytest.raises(TransientDiskError) as caught:
        write(disk, GRAIN, b"w" * GRAIN)
    assert caught.value.offset == GRAIN
    host.trouble.error_on.clear()
    with pytest.raises(DiskError):
        disk.flush()
    with pytest.raises(DiskError):
        disk.close()


def test_of_much_that_was_written_the_latest_is_read_back_and_a_part_of_the_rest() -> None:
    written = WrittenSince(Readback.SAMPLE, random.Random(1).randrange)
    digests = [ZERO_DIGEST] * (MIB // GRAIN)
    for number in range(512):
        written.add(number * MIB, MIB, digests)
    chosen = {one.offset // MIB for one in written.to_read_back()}
    assert set(range(512 - LATEST // MIB, 512)) <= chosen
    assert 5 <= len(chosen - set(range(448, 512))) <= 40
    everything = WrittenSince(Readback.ALL, lambda bound: 1)
    for number in range(512):
        everything.add(number * MIB, MIB, digests)
    assert len(everything.to_read_back()) == 512


@pytest.mark.slow
def test_what_the_pipeline_has_hashed_is_not_hashed_again(host: NfcHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading back compares with the pipeline's digests: the host loses a write, and is found out all the same."""
    hashed: list[int] = []

    def counted(view: memoryview) -> list[bytes]:
        hashed.append(len(view))
        return digests_of(view)

    monkeypatch.setattr("vrepl.nfc.disk.digests_of", counted)
    source = MemoryDisk(CAPACITY)
    for grain in (0, 1, 5, CAPACITY // GRAIN):
        source.write(grain * GRAIN, random.Random(grain).randbytes(min(GRAIN, CAPACITY - grain * GRAIN)))

    order = TransferOrder(
        TransferKind.FULL, ADDRESS, ADDRESS, [Extent(0, CAPACITY)], allocated_only=True, dirty=[],
        parent=DigestFiles(None), compare_with_target=False, log=Path("unused"),
    )  # fmt: skip

    def copied() -> None:
        with closing(open_disk(host, writable=True, readback="all")) as disk:
            copy_disk(order, MemoryHandle(source), disk, MemoryDigests({}), MemoryLog())

    copied()
    assert sum(hashed) == CAPACITY, "all of it was written and read back, and hashed here then only"
    assert host.disk.read(0, CAPACITY) == source.read(0, CAPACITY)
    source.write(5 * GRAIN, b"news" * (GRAIN // 4))
    host.trouble.lose_writes = True
    with pytest.raises(DiskError, match="other bytes"):
        copied()


@given(
    lengths=st.lists(st.just(GRAIN), max_size=6),
    tail=st.sampled_from([0, 512, 4096]),
    gap=st.integers(0, 7),
    start=st.integers(0, 8),
    length=st.integers(1, 8),
)
def test_digests_of_a_write_are_those_of_its_whole_grains_or_none(
    lengths: list[int], tail: int, gap: int, start: int, length: int
) -> None:
    grains, at = [], 0
    for number, each in enumerate([*lengths, *([tail] if tail else [])]):
        at += GRAIN if number == gap else 0
        grains.append((number, at, each))
        at += each
    hashed = Hashed(grains, [bytes([number]) * 16 for number, _, _ in grains])
    first, end = start * GRAIN, start * GRAIN + length * GRAIN
    if tail and grains and end > grains[-1][1]:
        end = max(grains[-1][1] + tail, first + 512)
    inside = [grain for grain in grains if first <= grain[1] < end]
    whole = sum(grain[2] for grain in inside) == end - first and inside[:1] == [g for g in grains if g[1] == first]
    assert hashed.of(first, end - first) == ([bytes([n]) * 16 for n, _, _ in inside] if whole else None)


@pytest.mark.slow
def test_what_was_written_again_is_compared_with_the_later_bytes_only(host: NfcHost) -> None:
    disk = open_disk(host, writable=True, readback="all")
    write(disk, 0, b"1" * 2 * GRAIN)
    write(disk, GRAIN, b"2" * GRAIN)
    write(disk, 0, b"3" * 512)
    disk.close()
    assert host.disk.read(0, 2 * GRAIN) == b"3" * 512 + b"1" * (GRAIN - 512) + b"2" * GRAIN


# -- a host that goes wrong ------------------------------------------------------------------------------------------


def cut_after(size: int) -> Callable[[bytes], bytes]:
    left = [size]

    def mangle(data: bytes) -> bytes:
        if len(data) > left[0]:
            data = data[: left[0]]
            left[0] = 0
            raise OSError("the test closes the connection") if not data else _Cut(data)
        left[0] -= len(data)
        return data

    return mangle


class _Cut(OSError):
    def __init__(self, rest: bytes) -> None:
        super().__init__("cut")
        self.rest = rest


@pytest.mark.parametrize("size", [0, 10, 100, 300])
def test_a_host_that_closes_in_mid_frame_is_a_lost_connection(host: NfcHost, size: int) -> None:
    disk = open_disk(host)
    host.trouble.mangle = cut_after(size)
    with pytest.raises(TransientDiskError) as caught:
        read(disk, GRAIN, GRAIN)
    assert caught.value.code == 14011
    assert "lost" in str(caught.value) or "closed" in str(caught.value)
    assert caught.value.hint
    host.trouble.mangle = None
    disk.close()


LIES: dict[str, Callable[[bytes], bytes]] = {
    "magic": lambda data: b"\0\0\0\0" + data[4:],
    "type": lambda data: data[:4] + struct.pack("<I", 9) + data[8:],
    "payload": lambda data: data[:8] + struct.pack("<I", 0xFFFFFFFF) + data[12:],
    "number": lambda data: data[:12] + struct.pack("<I", 0x7FFFFFFF) + data[16:],
    "offset": lambda data: data[:32] + struct.pack("<Q", 1 << 40) + data[40:],
    "total": lambda data: data[:40] + struct.pack("<I", 0) + data[44:],
    "start": lambda data: data[:44] + struct.pack("<I", 0xFFFF0000) + data[48:],
    "length": lambda data: data[:48] + struct.pack("<I", 0xFFFFFFFF) + data[52:],
    "wire": lambda data: data[:52] + struct.pack("<I", 0xFFFFFFFF) + data[56:],
    "compression": lambda data: data[:28] + struct.pack("<I", 3) + data[32:],
    "nothing": lambda data: data[:48] + struct.pack("<II", 0, 0) + data[56:],
}


@pytest.mark.parametrize("lie", sorted(LIES))
@pytest.mark.slow
def test_a_frame_that_lies_is_an_error_that_touches_nothing_else(host: NfcHost, lie: str) -> None:
    disk = open_disk(host)
    host.trouble.mangle = LIES[lie]
    buffer, answers = Buffer(MIB), SimpleQueue[VreplError | None]()
    buffer.view[:] = b"\xaa" * MIB
    disk.submit_read(GRAIN, buffer, GRAIN, GRAIN, answers.put)
    error = answers.get(timeout=20)
    assert isinstance(error, TransientDiskError)
    assert "not NFC as vrepl knows it" in str(error)
    assert error.hint
    assert set(buffer.view[:GRAIN]) == set(buffer.view[2 * GRAIN :]) == {0xAA}
    host.trouble.mangle = None
    disk.close()


def test_a_fragment_that_comes_twice_is_an_error(host: NfcHost) -> None:
    disk = open_disk(host)
    host.trouble.mangle = lambda data: data + data
    with pytest.raises(TransientDiskError, match=r"came twice|not open"):
        read(disk, GRAIN, 2 * GRAIN)


class SlowChannel:
    """Takes a few bytes of what it is sent, then none; answers every record as soon as its payload was sent."""

    name = "slow"

    def __init__(self, takes: int) -> None:
        self._pollable = socket.socketpair()
        self._takes = takes
        self._sent = bytearray()
        self._answers = bytearray()
        self._seen = 0

    def go_on(self) -> None: ...

    def close(self) -> None:
        for end in self._pollable:
            end.close()

    def fileno(self) -> int:
        return self._pollable[0].fileno()

    def try_send(self, views: Sequence[memoryview]) -> int:
        view = views[0]
        count = min(len(view), self._takes - len(self._sent))
        self._sent += view[:count]
        while len(self._sent) >= self._seen + 16:
            header = frames.decode_header(self._sent[self._seen : self._seen + 16])
            if len(self._sent) < self._seen + 16 + header.size:
                break
            if header.kind == frames.IO:
                self._seen += frames.decode_fragment(self._sent[self._seen + 16 :][: frames.IO_SIZE]).length
            self._seen += 16 + header.size
            self._answers += frames.encode_record(header.kind, header.number, bytes(header.size))
        return count

    def try_receive(self, view: memoryview) -> int | None:
        part = self._answers[: len(view)]
        view[: len(part)] = part
        del self._answers[: len(part)]
        return len(part) or None


@pytest.mark.parametrize("sent", [8, GRAIN])
def test_a_write_that_is_answered_before_it_was_sent_is_an_error(sent: int) -> None:
    """Its buffer would be used again while it is still being sent: a fragment, or the ones after it."""
    channel = SlowChannel(takes=16 + 16 + 16 + 12 + 16 + 4 + 16 + 44 + sent)
    session = session_module.Session(cast(Channel, channel), session_module.Limits(GRAIN, 4))
    answers: SimpleQueue[VreplError | None] = SimpleQueue()
    session.submit(Write(1, 0, Buffer(2 * GRAIN).view, GRAIN, answers.put))
    error = answers.get(timeout=20)
    assert isinstance(error, TransientDiskError)
    assert "answered before it was sent" in str(error)
    session.abandon()


@settings(max_examples=25, deadline=None)
@given(noise=st.binary(min_size=1, max_size=400), at=st.integers(0, 200))
@pytest.mark.slow
def test_whatever_a_host_says_a_read_ends(noise: bytes, at: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    disk = MemoryDisk(CAPACITY)
    disk.write(GRAIN, b"data" * (GRAIN // 4))
    with nfc_host(disk, tmp_path_factory.mktemp("host")) as host:
        opened = engine_for(host).open(
            DiskAddress("prod", "vm-1", None, PATH, CAPACITY, (TransportMode.NBD,), "vm", "disk"), SITE, writable=False
        )
        host.trouble.mangle = lambda data: data[:at] + noise + data[at:]
        outcome: DiskError | None = None
        try:
            read(opened, GRAIN, 2 * GRAIN)
        except DiskError as error:
            outcome = error
        assert outcome is None or outcome.hint
        opened.abandon()
