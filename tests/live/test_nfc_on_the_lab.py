"""vrepl's own NBD against the lab's hosts, which were written in Go from the same public descriptions.

Client and server share nothing but those: what the one says the other must understand, refuse or lose as an ESXi would.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from tests.support.site_access import pinned_settings_of
from vrepl.errors import (
    DiskError,
    DiskLockedError,
    NfcMemoryError,
    PermissionDeniedError,
    TransientDiskError,
    VreplError,
)
from vrepl.extents import GRAIN, Extent
from vrepl.model import TransportMode
from vrepl.movers.engine import EngineSettings
from vrepl.nfc import authd, frames
from vrepl.nfc.disk import NfcDisk
from vrepl.nfc.engine import start
from vrepl.ports import DiskAddress, NfcTicket, TicketRequest
from vrepl.transport.buffers import MIB, Buffer
from vrepl.vsphere.site import VsphereSite
from vrepl_lab.lab import Lab
from vrepl_lab.spec import DiskSpec, LabSpec, VmSpec

SIZE = 8 * MIB
SPEC = LabSpec.of_vms(
    VmSpec("on-01", disks=(DiskSpec(SIZE, content="random", thin=False),)),
    VmSpec("off-01", disks=(DiskSpec(SIZE, content="random"),), power="poweredOff", tools="notRunning"),
)


@pytest.fixture(scope="module")
def disks(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(SPEC)


@pytest.fixture
def api(disks: Lab) -> Iterator[Any]:
    with plain_api.session(disks) as instance:
        yield instance


@pytest.fixture
def site(disks: Lab) -> Iterator[VsphereSite]:
    with VsphereSite(pinned_settings_of(disks, "prod")) as made:
        yield made
    disks.set(
        "faults=none", "nfc_limit_mib=48", "missing_privileges=none", "lock_linger_s=5", "allocated_supported=yes"
    )


class Subject:
    """Disks of the lab's VMs, opened by vrepl's own engine in this process."""

    def __init__(self, site: VsphereSite, vm: Any, lab: Lab) -> None:
        self.site, self.vm, self.lab = site, vm, lab
        self.path = str(plain_api.disk_path(vm.config))
        self.tickets: list[NfcTicket] = []

    def ticket(self, request: TicketRequest) -> NfcTicket:
        self.tickets.append(self.site.nfc_ticket(request.vm_ref, request.path, writable=request.writable))
        return self.tickets[-1]

    def open(
        self, *, writable: bool = False, mode: str = "nbdssl", path: str | None = None, snapshot: str | None = None,
        compression: str = "none",
        **changes: Any,
    ) -> NfcDisk:  # fmt: skip
        engine = start(
            EngineSettings(None, Path("/"), **({"buffer_units": 1, "buffer_count": 16} | changes)),
            lambda kind, text: None,
            self.ticket,
        )
        address = DiskAddress(
            "prod", self.vm._moId, snapshot, path or self.path, SIZE, (TransportMode(mode),), "vm", "disk"
        )
        return engine.open(address, replace(self.site.connection(), nfc_compression=compression), writable=writable)

    def export(self, folder: Path) -> bytes:
        return self.lab.export("prod", self.vm.name, 0, folder / "export.img").read_bytes()


@pytest.fixture
def off(site: VsphereSite, api: Any, disks: Lab) -> Subject:
    return Subject(site, vm_named(api, "off-01"), disks)


@pytest.fixture
def on(site: VsphereSite, api: Any, disks: Lab) -> Subject:
    return Subject(site, vm_named(api, "on-01"), disks)


def read(disk: NfcDisk, offset: int, length: int) -> bytes:
    buffer, answers = Buffer(2 * MIB), SimpleQueue[VreplError | None]()
    disk.submit_read(offset, buffer, 0, length, answers.put)
    error = answers.get(timeout=60)
    if error is not None:
        raise error
    return bytes(buffer.view[:length])


def read_all(disk: NfcDisk) -> bytes:
    return b"".join(read(disk, offset, MIB) for offset in range(0, SIZE, MIB))


def write(disk: NfcDisk, offset: int, data: bytes) -> None:
    buffer, answers = Buffer(2 * MIB), SimpleQueue[VreplError | None]()
    buffer.view[: len(data)] = data
    disk.submit_write(offset, buffer, 0, len(data), answers.put)
    error = answers.get(timeout=60)
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("mode", "compression"), [("nbdssl", "none"), ("nbd", "none"), ("nbdssl", "skipz"), ("nbd", "zlib")]
)
def test_every_byte_is_read_as_the_guest_has_it(off: Subject, tmp_path: Path, mode: str, compression: str) -> None:
    disk = off.open(mode=mode, compression=compression)
    assert (disk.capacity, disk.mode) == (SIZE, mode)
    assert disk.uuid
    assert read_all(disk) == off.export(tmp_path)
    disk.close()
    assert off.lab.status()["prod"]["locks"] == []


def test_what_is_written_is_there_and_holes_are_told(off: Subject, tmp_path: Path) -> None:
    data = b"".join(sha256(str(number).encode()).digest() for number in range(MIB // 32))
    disk = off.open(writable=True, readback="all", buffer_units=16, buffer_count=4)
    write(disk, 512, data)
    write(disk, 5 * MIB, bytes(GRAIN))
    disk.flush()
    assert off.export(tmp_path)[512 : 512 + MIB] == data
    write(disk, 6 * MIB, data)
    disk.close()
    assert off.export(tmp_path)[6 * MIB : 7 * MIB] == data
    reader = off.open()
    told = list(reader.allocated(Extent(0, SIZE)))
    assert told
    held = b"".join(read(reader, extent.offset, GRAIN) for extent in told if extent.length == GRAIN)
    assert held is not None
    outside = set(range(SIZE // GRAIN)) - {
        grain for extent in told for grain in range(extent.offset // GRAIN, -(-extent.end // GRAIN))
    }
    image = off.export(tmp_path)
    assert all(image[grain * GRAIN : (grain + 1) * GRAIN] == bytes(GRAIN) for grain in outside)
    reader.close()


def test_a_host_that_tells_nothing_of_allocation_is_read_whole(off: Subject) -> None:
    off.lab.set("prod.allocated_supported=no")
    disk = off.open()
    assert list(disk.allocated(Extent(0, SIZE))) == [Extent(0, SIZE)]
    assert len(read(disk, 0, GRAIN)) == GRAIN
    disk.close()


def test_the_disk_of_a_running_vm_is_read_through_its_snapshot(on: Subject, api: Any, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="multiwriter mode") as caught:
        on.open()
    assert "snapshot" in str(caught.value.hint)
    frozen = on.export(tmp_path)
    snapshot = wait(on.vm.CreateSnapshot_Task(name="s", description="", memory=False, quiesce=False))
    try:
        on.lab.write("prod", "on-01", 0, 0, b"later" * 100)
        disk = on.open(snapshot=snapshot._moId)
        assert read_all(disk) == frozen
        disk.close()
        with pytest.raises(DiskError) as refused:
            on.open(writable=True)
        assert refused.value.code in {11, 13}
    finally:
        wait(snapshot.RemoveSnapshot_Task(removeChildren=False))


def test_a_reader_may_not_write_and_a_writer_shuts_others_out(off: Subject) -> None:
    writer = off.open(writable=True)
    with pytest.raises(DiskLockedError):
        off.open()
    writer.close()
    off.open().close()


def test_a_dead_clients_lock_lingers_and_what_it_had_not_closed_is_lost(off: Subject, tmp_path: Path) -> None:
    off.lab.set("prod.lock_linger_s=1")
    before = off.export(tmp_path)
    disk = off.open(writable=True)
    write(disk, 0, b"never closed" * 1024)
    disk.abandon()
    with pytest.raises(DiskLockedError):
        off.open(writable=True)
    for _ in range(100):
        if not off.lab.status()["prod"]["locks"]:
            break
        time.sleep(0.05)
    assert off.export(tmp_path) == before
    off.open(writable=True).close()


def test_tickets_serve_once_and_for_their_disk_alone(off: Subject, on: Subject) -> None:
    off.open().close()
    spent = off.tickets[-1]
    off.ticket = lambda request: spent  # type: ignore[method-assign]
    with pytest.raises(DiskError, match="does not take the ticket"):
        off.open()
    with pytest.raises(DiskError, match="permission check failed"):
        on.open(path=off.path)
    with pytest.raises(DiskError, match="is no disk of VM"):
        on.open(path=off.path, writable=True)


def test_a_missing_privilege_is_named(off: Subject) -> None:
    off.lab.set("prod.missing_privileges=VirtualMachine.Provisioning.DiskRandomRead")
    with pytest.raises(DiskError, match="DiskRandomRead") as caught:
        off.open()
    assert isinstance(caught.value.__cause__, PermissionDeniedError)


def test_the_hosts_memory_is_counted_and_given_back(off: Subject) -> None:
    off.lab.set("prod.nfc_limit_mib=3")
    with pytest.raises(NfcMemoryError):
        off.open(buffer_units=16, buffer_count=4)
    disk = off.open(buffer_units=16, buffer_count=2)
    assert sum(host["used_kib"] for host in off.lab.status()["prod"]["nfc"]) == 2048
    disk.close()
    assert sum(host["used_kib"] for host in off.lab.status()["prod"]["nfc"]) == 0


def use(subject: Subject, data: bytes) -> None:
    """Open, read, write, flush; whatever fails, the client ends as a dead one does."""
    disk = subject.open(writable=True)
    try:
        read(disk, 0, GRAIN)
        write(disk, 0, data)
        disk.flush()
    finally:
        disk.abandon()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("open:error:locked", DiskLockedError),
        ("open:error:no_access", DiskError),
        ("connect:error:cannot_connect", TransientDiskError),
        ("read:error:connection_lost", TransientDiskError),
        ("read:lost", TransientDiskError),
        ("close:error:fail", DiskError),
        ("flush:lost", TransientDiskError),
        ("write:error:fail", DiskError),
    ],
)
def test_faults_of_the_lab_reach_this_engine_too(
    off: Subject, tmp_path: Path, fault: str, kind: type[DiskError]
) -> None:
    off.lab.set("prod.lock_linger_s=0", f"prod.fault={fault},vm=off-01")
    before = off.export(tmp_path)
    with pytest.raises(kind):
        use(off, before[:GRAIN])
    assert off.export(tmp_path) == before


def test_a_frozen_host_is_waited_for(off: Subject) -> None:
    off.lab.set("prod.fault=read:freeze:300,vm=off-01")
    disk = off.open()
    began = time.monotonic()
    read(disk, 0, 512)
    assert time.monotonic() - began >= 0.3
    disk.close()


NOISE = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.builds(
        lambda kind, number, size, rest: struct.pack("<IIII", 0xA100DA7A, kind, size, number) + rest,
        st.integers(0, 30),
        st.integers(0, 5),
        st.one_of(st.sampled_from([0, 4, 8, 12, 16, 44, 48, 60]), st.integers(0, 2**32 - 1)),
        st.binary(max_size=120),
    ),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(NOISE, min_size=1, max_size=6), opened=st.booleans())
def test_whatever_a_client_says_the_host_lives_on(off: Subject, records: list[bytes], opened: bool) -> None:
    ticket = off.ticket(TicketRequest("prod", off.vm._moId, off.path, False))
    channel = authd.connect(ticket, TransportMode.NBD)
    with suppress(DiskError):
        if opened:
            channel.send(frames.encode_record(frames.OPEN_SESSION, 0, frames.open_session(GRAIN, 4)))
        for record in records:
            channel.send(record)
    channel.close()
    assert off.lab.status()["prod"]["pid"] == off.lab.sites["prod"].process.pid


RUDE = """
import sys
from vrepl.nfc.channel import Channel
channel = Channel(sys.argv[1], int(sys.argv[2]))
print(channel.receive_line(), flush=True)
channel.send(b"USER root\\r\\n")
channel.receive(1 << 20)
"""


def test_records_out_of_order_end_the_connection(off: Subject) -> None:
    """A client that says what no client says is not answered."""
    for sent in (
        frames.encode_record(frames.OPEN_FILE, 0, frames.open_file(b"x", writable=False)) + b"x",
        frames.encode_record(frames.OPEN_SESSION, 1, frames.open_session(GRAIN, 4)),
        b"\0" * 64,
        frames.encode_record(frames.OPEN_SESSION, 0, b"short"),
    ):
        ticket = off.ticket(TicketRequest("prod", off.vm._moId, off.path, False))
        channel = authd.connect(ticket, TransportMode.NBDSSL)
        channel.send(sent)
        with pytest.raises(TransientDiskError):
            channel.receive(16)
        channel.close()


def test_a_client_that_does_not_speak_tls_is_sent_away(off: Subject) -> None:
    ticket = off.ticket(TicketRequest("prod", off.vm._moId, off.path, False))
    done = subprocess.run(
        [sys.executable, "-c", RUDE, ticket.host, str(ticket.port)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "220 VMware Authentication Daemon" in done.stdout
    assert "closed by the host" in done.stderr
