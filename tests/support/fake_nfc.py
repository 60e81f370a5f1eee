"""A vCenter's VDDK port and an ESXi host's NFC port, reduced to what the lab's libvixDiskLib asks of them.

Lets the library be tested without the simulator: docs/lab-internals.md, section 4, is the contract of both. Disks are
made here as section 2 says, from the bytes that each link holds.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

GRAIN = 65536
HOLE, PRESENT, UNMAPPED = 0, 1, 2
THUMBPRINT = "AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD"
CTK_HEADER = struct.Struct("<8sIIQQ16s16s")
PASSWORD = "secret"


@dataclass
class Disk:
    """A virtual disk: its links from leaf to base, by path without suffix."""

    capacity: int
    links: list[Path]
    vm: str = "vm"
    mode: str = "nbdssl"
    ctk: Path | None = None

    def flat(self, link: int = 0) -> Path:
        return Path(f"{self.links[link]}-flat.vmdk")

    def grains(self, link: int = 0) -> bytes:
        return Path(f"{self.links[link]}-grains.map").read_bytes()

    def content(self) -> bytes:
        """The disk as the files hold it, resolved here independently of the library."""
        out = bytearray(self.capacity)
        for grain in range(-(-self.capacity // GRAIN)):
            for link in range(len(self.links)):
                state = self.grains(link)[grain]
                if state == PRESENT:
                    start = grain * GRAIN
                    end = min(start + GRAIN, self.capacity)
                    out[start:end] = self.flat(link).read_bytes()[start:end]
                if state != HOLE:
                    break
        return bytes(out)

    def last_changes(self) -> list[int]:
        assert self.ctk is not None
        data = self.ctk.read_bytes()
        blocks = CTK_HEADER.unpack_from(data)[4]
        return list(struct.unpack_from(f"<{blocks}I", data, CTK_HEADER.size))


def make_link(
    stem: Path, capacity: int, present: dict[int, bytes], unmapped: Iterable[int] = (), junk: bytes = b""
) -> Path:
    """One link; `present` maps grain numbers to bytes. `junk` fills the flat file where the link holds nothing."""
    states = bytearray(-(-capacity // GRAIN))
    with Path(f"{stem}-flat.vmdk").open("wb") as flat:
        if junk:
            flat.write((junk * (capacity // len(junk) + 1))[:capacity])
        flat.truncate(capacity)
        for grain, data in present.items():
            flat.seek(grain * GRAIN)
            flat.write(data)
            states[grain] = PRESENT
    for grain in unmapped:
        states[grain] = UNMAPPED
    Path(f"{stem}-grains.map").write_bytes(states)
    return stem


def make_ctk(path: Path, capacity: int, epoch: int, block_size: int = GRAIN) -> Path:
    blocks = -(-capacity // block_size)
    header = CTK_HEADER.pack(b"VRLABCTK", 1, block_size, epoch, blocks, bytes(16), bytes(16))
    path.write_bytes(header + bytes(4 * blocks))
    return path


@dataclass
class Lock:
    """An open disk at the host: held until `op close` (released) or the end of its connection (lingering)."""

    path: str
    readonly: bool
    nfc_kib: int
    state: str = "held"


@dataclass
class FakeNfc:
    """Both listeners, each connection on a thread of its own."""

    disks: dict[str, Disk]
    nfc_limit_kib: int = 48 * 1024
    open_delay_s: float = 0.0
    requests: list[dict[str, str]] = field(default_factory=list)
    locks: list[Lock] = field(default_factory=list)
    _sockets: list[socket.socket] = field(default_factory=list)
    _tickets: dict[str, tuple[str, bool]] = field(default_factory=dict)
    _ticket_numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.control = self._listen(self._serve_control)
        self.nfc = self._listen(self._serve_nfc)
        self.control_port = int(self.control.getsockname()[1])
        self.nfc_port = int(self.nfc.getsockname()[1])

    def close(self) -> None:
        """Ends everything, open connections too: what clients see when the site dies."""
        for each in [self.control, self.nfc, *self._sockets]:
            with suppress(OSError):  # never connected, or gone already
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close_nfc(self) -> None:
        """Closes the host's NFC port for newcomers."""
        self.nfc.shutdown(socket.SHUT_RDWR)
        self.nfc.close()

    def wait_for(self, state: str, timeout_s: float = 10.0) -> Lock:
        """The latest lock, once it is in that state."""
        until = time.monotonic() + timeout_s
        while not self.locks or self.locks[-1].state != state:
            assert time.monotonic() < until, f"lock not {state}: {self.locks}"
            time.sleep(0.005)
        return self.locks[-1]

    def _listen(self, serve: Callable[[socket.socket], None]) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                self._sockets.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return listener

    def _requests(self, connection: socket.socket) -> Iterable[dict[str, str]]:
        with connection.makefile("r", encoding="utf-8", newline="\n") as stream:
            message: dict[str, str] = {}
            while True:
                try:
                    line = stream.readline()
                except OSError:
                    return
                if not line:
                    return
                if line != "\n":
                    key, _, value = line.rstrip("\n").partition(" ")
                    message[key] = value
                    continue
                self.requests.append(message)
                yield message
                message = {}

    @staticmethod
    def _reply(connection: socket.socket, *lines: str) -> None:
        connection.sendall(("\n".join(lines) + "\n\n").encode())

    def _serve_control(self, connection: socket.socket) -> None:
        lock: Lock | None = None
        for request in self._requests(connection):
            match request["op"]:
                case "open":
                    lock = self._open(connection, request)
                case "close":
                    assert lock is not None
                    lock.state = "released"
                    self._reply(connection, "status 0")
                    break
                case "connect" if request.get("password") != PASSWORD and request.get("session") != PASSWORD:
                    self._reply(connection, "status 3014", "text Cannot complete login")
                case "cleanup":
                    self._reply(connection, "status 0", "cleaned 1", "remaining 0")
                case _:
                    self._reply(connection, "status 0")
        if lock is not None and lock.state == "held":
            lock.state = "lingering"
        connection.close()

    def _open(self, connection: socket.socket, request: dict[str, str]) -> Lock | None:
        time.sleep(self.open_delay_s)
        disk = self.disks.get(request["path"])
        readonly = request["readonly"] == "1"
        if disk is None:
            self._reply(connection, "status 4", "text no such disk")
            return None
        if any(
            lock.path == request["path"] and lock.state != "released" and not (readonly and lock.readonly)
            for lock in self.locks
        ):
            self._reply(connection, "status 15", "text locked")
            return None
        lines = ["status 0", f"mode {disk.mode}", f"vm {disk.vm}", f"capacity {disk.capacity}", "adapter 3"]
        lines += ["uuid 6000C290-0000-0000-0000-000000000001", f"links {len(disk.links)}"]
        lines += [f"link {link}" for link in disk.links]
        if disk.ctk is not None and not readonly:
            lines.append(f"ctk {disk.ctk}")
        if not disk.mode.startswith("nbd"):
            lock = Lock(request["path"], readonly, 0)
            self.locks.append(lock)
            self._reply(connection, *lines)
            return lock
        ticket = f"ticket-{next(self._ticket_numbers)}"
        self._tickets[ticket] = (request["path"], readonly)
        self._reply(connection, *lines, f"ticket {ticket}", "host 127.0.0.1", f"nfc_port {self.nfc_port}")
        return None

    def _serve_nfc(self, connection: socket.socket) -> None:
        lock: Lock | None = None
        for request in self._requests(connection):
            if request["op"] == "close":
                assert lock is not None
                lock.state = "released"
                self._reply(connection, "status 0")
                break
            path, readonly = self._tickets.pop(request["ticket"])
            wanted = int(request["nfc_kib"])
            if sum(each.nfc_kib for each in self.locks if each.state != "released") + wanted > self.nfc_limit_kib:
                self._reply(connection, "status 5", "text no memory")
                break
            lock = Lock(path, readonly, wanted)
            self.locks.append(lock)
            self._reply(connection, "status 0")
        if lock is not None and lock.state == "held":
            lock.state = "lingering"
        connection.close()
