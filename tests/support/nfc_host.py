"""A small ESXi host for tests: authd and NFC over real TLS, one disk in memory.

Written from the public descriptions alone (cloudbase/OpenVixDiskLib docs/nfc_auth.md, nfc_open.md, nfc_read.md,
nfc_write.md; hystax/OpenVixDiskLib docs/nfc_open.md and nfc_read.md for the disk's database and the allocation map): it
shares no line with vrepl's client. `trouble` makes it misbehave.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.memory_disk import MemoryDisk
from vrepl.errors import DiskError
from vrepl.extents import Extent
from vrepl.ports import NfcTicket, TicketRequest
from vrepl_lab.certificates import Authority, Certificate

BANNER = (
    "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, MKSDisplayProtocol:VNC , "
    "VMXARGS supported, NFCSSL supported/t, SHA256 supported\r\n"
)
PATH = "[store] vm/vm.vmdk"
MAGIC = 0xA100DA7A


class Gone(Exception):
    """The client went, or is sent away."""


@dataclass
class Trouble:
    """What goes wrong, and for which connections."""

    first_certificate: Certificate | None = None
    second_certificate: Certificate | None = None
    told_sha256: str | None = None
    banner: str = BANNER
    refuse_session: bool = False
    error_on: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Type of a record -> error code and words, each time."""
    mangle: Callable[[bytes], bytes] | None = None
    """What goes out after the handshake passes through here."""
    lose_writes: bool = False
    """What was written is forgotten at the close."""
    no_map: bool = False
    shuffle: bool = False
    """Fragments go out from the last to the first."""
    pack: int = 0
    """Compression to answer with where that was asked for."""


class NfcHost:
    """Serves on a port of its own until `close`."""

    def __init__(self, disk: MemoryDisk, folder: Path) -> None:
        self.disk = disk
        self.trouble = Trouble()
        self.connections = 0
        self.peak_in_flight = 0
        self.writers = 0
        self.handshakes: list[tuple[int, ...]] = []
        self.asked_buffers: list[tuple[int, int]] = []
        self.certificate = Authority("hosts").issue(["127.0.0.1"])
        self._folder = folder
        self._tickets: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def ticket(self, request: TicketRequest) -> NfcTicket:
        """What a site would give."""
        if request.path != PATH:
            raise DiskError(f"no disk {request.path}", code=13)
        secret = secrets.token_hex(16)
        self._tickets[secret] = request.writable
        return NfcTicket("127.0.0.1", self.port, self.certificate.sha1_thumbprint, "vpxa-nfc", secret)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _context(self, certificate: Certificate) -> ssl.SSLContext:
        name = hashlib.sha256(certificate.der).hexdigest()[:16]
        pem, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        if not pem.exists():
            certificate.write(pem, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, key)
        return context

    def _serve(self, connection: socket.socket) -> None:
        with suppress(Gone, OSError, ValueError):
            try:
                Conversation(self, connection).run()
            finally:
                connection.close()

    def spend(self, secret: str) -> bool | None:
        """Whether a ticket lets write; None where there is none any more."""
        with self._lock:
            return self._tickets.pop(secret, None)


class Conversation:
    def __init__(self, host: NfcHost, connection: socket.socket) -> None:
        self.host = host
        self.trouble = host.trouble
        self.wire: socket.socket = connection
        self.writable = False
        self.pending: list[tuple[int, bytes]] = []
        self.handle = 0
        self.piece = 65536
        self.mangled = False

    # -- authd

    def run(self) -> None:
        host, trouble = self.host, self.trouble
        certificate = trouble.first_certificate or host.certificate
        self.wire.sendall(trouble.banner.encode())
        tls = host._context(certificate).wrap_socket(self.wire, server_side=True)
        self.wire = tls
        session = self.line()
        assert session.startswith("SESSION "), session
        assert self.raw_line() == b"BANNER \r\n"
        writable = host.spend(session.removeprefix("SESSION "))
        if writable is None or trouble.refuse_session:
            tls.sendall(b"530 Please login with USER and PASS\r\n")
            return
        self.writable = writable
        tls.sendall(trouble.banner.encode())
        word, tag = self.line().split(" ")
        assert word == "THUMBPRINT_SHA2"
        tls.sendall(f"200 {trouble.told_sha256 or certificate.sha256_thumbprint}\r\n".encode())
        match self.line():
            case "PROXY vpxa-nfcssl":
                tls.sendall(b"200 Connect ha-nfcssl\r\n")
                bare = socket.socket(fileno=tls.detach())
                again = trouble.second_certificate or certificate
                self.wire = host._context(again).wrap_socket(bare, server_side=True)
            case "PROXY vpxa-nfc":
                tls.sendall(b"200 Connect ha-nfc\r\n")
                self.wire = socket.socket(fileno=tls.detach())
            case other:
                tls.sendall(f"500 {other}\r\n".encode())
                return
        try:
            self.classic(tag)
            self.records()
        finally:
            self.wire.close()

    def raw_line(self) -> bytes:
        text = b""
        while not text.endswith(b"\n"):
            text += self.take(1)
        return text

    def line(self) -> str:
        return self.raw_line().decode().strip()

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.wire.recv(size - len(data))
            if not part:
                raise Gone
            data += part
        return data

    def say(self, data: bytes) -> None:
        if self.trouble.mangle is not None and self.mangled:
            data = self.trouble.mangle(data)
            self.wire.sendall(data)
            return
        self.wire.sendall(data)

    # -- before AIO

    def classic(self, tag: str) -> None:
        kinds = []

        def expect(kind: int) -> bytes:
            message = self.take(264)
            kinds.append(struct.unpack("<I", message[:4])[0])
            if kinds[-1] != kind:
                self.wire.sendall(struct.pack("<I260x", 4))
                raise Gone
            return message[4:]

        assert expect(43).rstrip(b"\0").decode() == tag
        expect(33)
        version = expect(51)
        self.wire.sendall(struct.pack("<I12xI244x", 36, 1))
        self.wire.sendall(struct.pack("<II256x", 51, struct.unpack("<I", version[:4])[0]))
        name, purpose = struct.unpack("<II", expect(54)[:8])
        self.take(name)
        assert self.take(purpose) == b"nbdmode"
        expect(55)
        expect(52)
        self.wire.sendall(struct.pack("<I260x", 52))
        self.host.handshakes.append(tuple(kinds))

    # -- AIO

    def answer(self, kind: int, number: int, payload: bytes, trailer: bytes = b"") -> None:
        self.say(struct.pack("<IIII", MAGIC, kind, len(payload), number) + payload + trailer)

    def refuse(self, kind: int, number: int, code: int, words: str) -> None:
        text = words.encode()
        self.answer(1, number, struct.pack("<QII", code, 0, len(text)), text)
        self.answer(kind, number, struct.pack("<Q", code).ljust(60 if kind == 4 else 44 if kind == 7 else 16, b"\0"))

    def records(self) -> None:
        self.mangled = True
        opened = False
        while True:
            magic, kind, size, number = struct.unpack("<IIII", self.take(16))
            if magic != MAGIC:
                raise Gone
            payload = self.take(size)
            trouble = self.trouble.error_on.get(kind)
            match kind:
                case 2:
                    _, piece, count, _ = struct.unpack("<IIII", payload)
                    self.host.asked_buffers.append((piece, count))
                    self.piece = piece or 65536
                    reply = bytes(16)
                case 9:
                    reply = struct.pack("<III", 1675000, 1675000, 1)
                case 22:
                    reply = payload
                case 4:
                    reply = self.open(payload, number)
                    if not reply:
                        continue
                    opened = True
                case 7:
                    assert opened
                    self.io(number, payload, trouble)
                    continue
                case 11:
                    key = self.take(struct.unpack("<I", payload[8:12])[0])
                    value = b"60 00 C2 90" if key == b"uuid" else b""
                    self.answer(11, number, struct.pack("<12xI", len(value)), value)
                    continue
                case 13:
                    self.map(number, payload)
                    continue
                case 5:
                    assert struct.unpack("<Q", payload[:8])[0] == self.handle
                    if trouble is not None:
                        self.refuse(kind, number, *trouble)
                        continue
                    self.close_file()
                    reply = bytes(8)
                case 3:
                    self.answer(3, number, bytes(4))
                    return
                case _:
                    raise Gone
            if trouble is not None:
                self.refuse(kind, number, *trouble)
            else:
                self.answer(kind, number, reply)

    def open(self, payload: bytes, number: int) -> bytes:
        length, _, _, _, kind, flags = struct.unpack("<IIIIII", payload[:24])
        assert len(payload) == 60
        assert kind == 2
        path = self.take(length).decode()
        if path != PATH:
            self.refuse(4, number, 11, "NfcAioProcessOpenFileMsg: permission check failed")
            return b""
        if flags == 0x1A and not self.writable:
            self.refuse(4, number, 11, "")
            return b""
        assert flags in (0x1A, 0x1E)
        self.writable = flags == 0x1A
        self.handle = secrets.randbits(63) | 1
        capacity = self.host.disk.capacity
        return struct.pack("<QQIIIQIIII8x", 0, self.handle, 2, flags, 0, capacity, 512, 1, 255, 63)

    def io(self, number: int, payload: bytes, trouble: tuple[int, str] | None) -> None:
        handle, direction, packing, offset, total, start, length, extra, _ = struct.unpack("<QIIQIIIII", payload)
        assert handle == self.handle
        if direction == 1:
            total = struct.unpack("<Q", payload[24:32])[0]
            assert length == extra == total <= 1 << 20
            if trouble is not None:
                self.refuse(7, number, *trouble)
                return
            data = self.read(offset, total)
            starts = list(range(0, total, self.piece))
            for at in reversed(starts) if self.trouble.shuffle else starts:
                part = data[at : at + self.piece]
                packed, how = self.packed(part, packing)
                self.answer(
                    7,
                    number,
                    struct.pack("<QIIQIIIII", 0, 1, how, offset, total, at, len(part), len(packed), 0),
                    packed,
                )
            return
        assert self.writable
        assert length == extra <= self.piece
        data = self.take(extra)
        self.pending.append((offset + start, data))
        if start + length == total:
            if trouble is not None:
                self.refuse(7, number, *trouble)
                return
            self.answer(7, number, struct.pack("<QIIQIIIII", 0, 0, 0, offset, total, 0, total, 0, 0))

    def packed(self, data: bytes, asked: int) -> tuple[bytes, int]:
        if not asked or not self.trouble.pack:
            return data, 0
        if asked == 1:
            return zlib.compress(data), 1
        out = struct.pack("<II", len(data), 0)
        at = 0
        while at < len(data):
            if data[at] == 0:
                at += 1
                continue
            end = data.find(b"\0", at)
            end = len(data) if end < 0 else end
            out += struct.pack("<II", at, end - at) + data[at:end]
            at = end
        return (out, 3) if len(out) < len(data) else (data, 0)

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(self.host.disk.read(offset, length))
        for at, part in self.pending:
            first, last = max(at, offset), min(at + len(part), offset + length)
            if first < last:
                data[first - offset : last - offset] = part[first - at : last - at]
        return bytes(data)

    def map(self, number: int, payload: bytes) -> None:
        handle, _, chunk, offset, count, _ = struct.unpack("<QQQQQQ", payload)
        assert handle == self.handle
        assert offset % chunk == 0
        if self.trouble.no_map or self.pending:
            self.refuse(13, number, 6, "")
            return
        bits = 0
        for extent in self.host.disk.allocated(Extent(offset, chunk * count)):
            for at in range((extent.offset - offset) // chunk, -(-(extent.end - offset) // chunk)):
                bits |= 1 << at
        size = -(-count // 32) * 4
        self.answer(13, number, struct.pack("<QQQQQQ", 0, 0, 0, 0, count, 0), bits.to_bytes(size, "little"))

    def close_file(self) -> None:
        if not self.trouble.lose_writes:
            for offset, data in self.pending:
                self.host.disk.write(offset, data)
        self.pending = []


@contextmanager
def nfc_host(disk: MemoryDisk, folder: Path) -> Iterator[NfcHost]:
    host = NfcHost(disk, folder)
    try:
        yield host
    finally:
        host.close()
