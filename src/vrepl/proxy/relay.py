"""One end of the byte stream between movers on two machines: TLS on the network, plain bytes to the mover beside it.

A process of its own: a mover that loads VDDK must have no other OpenSSL. Both ends show certificates of this run's own
authority, and each wants the other's name: who has none of this run, or that of another pair, gets nothing. One thread,
for OpenSSL's connections are not made for two.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from vrepl.stream.end import StreamEnd
from vrepl.stream.wire import SO_RCVBUFFORCE, SO_SNDBUFFORCE

if TYPE_CHECKING:  # loaded by those that encrypt alone
    import ssl

PR_SET_PDEATHSIG = 1
BUFFER = 256 * 1024
WINDOW = 16 * 1024 * 1024
"""What the pipeline has in flight at the most."""
UNSENT = 1024 * 1024
"""Bytes that may wait in the kernel for the network to take them."""
LONG_WAY = 5000
"""Microseconds there and back."""
RTT_AT = 68
"""Where `tcpi_rtt` lies in struct tcp_info (linux/tcp.h)."""
WAIT_SECONDS = 60.0
"""For the other end to come, and to say who it is."""


def relay(end: StreamEnd, listener: socket.socket | None, mover: socket.socket) -> None:
    """Until either side ends. What goes wrong is said on standard error, which the control process reads."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        connection, line = _connect(end, listener)
    except OSError as error:  # ssl.SSLError is one
        where = f"from port {listener.getsockname()[1]}" if listener is not None else f"to {end.address}:{end.port}"
        _say(f"no stream {where}: {error}")
        return
    with connection, mover:
        try:
            _pump(connection, line, mover)
        except OSError as error:
            _say(f"the stream between the data movers broke: {error}")


def _say(text: str) -> None:
    """To whoever reads what this machine's mover says."""
    os.write(2, f"{text}\n".encode())


def _widen(connection: socket.socket) -> None:
    """On a long way, a window as large as what the mover has in flight, where this user may: most systems' is 4 MiB.

    That is 640 Mbit/s at 50 ms. On a short way more in flight would only fall out of the processor's cache.
    """
    (microseconds,) = struct.unpack_from("I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), RTT_AT)
    if microseconds < LONG_WAY:
        return
    with suppress(PermissionError):  # then the system's own, which follows the connection
        for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
            connection.setsockopt(socket.SOL_SOCKET, option, WINDOW)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


def _connect(end: StreamEnd, listener: socket.socket | None) -> tuple[socket.socket, Line]:
    if listener is not None:
        with listener:
            listener.settimeout(WAIT_SECONDS)
            connection, _ = listener.accept()
    else:
        connection = socket.create_connection((end.address or "", end.port), WAIT_SECONDS)
    _widen(connection)
    connection.settimeout(WAIT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if end.congestion:
        with suppress(OSError):  # not this kernel, or not this user
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, end.congestion.encode())
    try:
        if not end.encrypted:
            return connection, Plain(connection)
        connection = _agree(end, connection, server=listener is not None)
        return connection, Tls(connection)
    except BaseException:
        connection.close()
        raise


class Line(Protocol):
    """The connection to the other end, as a non-blocking socket is one."""

    def receive_into(self, view: memoryview) -> int:
        """Bytes; 0 at the end. Raises BlockingIOError where nothing is there yet."""
        ...

    def send(self, view: memoryview) -> int:
        """Bytes that were taken. Raises BlockingIOError where none could be; the same must then be sent again."""
        ...


class Plain:
    def __init__(self, connection: socket.socket) -> None:
        self.receive_into, self.send = connection.recv_into, connection.send


class Tls:
    """OpenSSL on the socket itself: it encrypts out of the buffer that the mover filled, a record at a time.

    Going through memory, to hand large pieces to the socket, costs more in copies than the calls that it saves.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        import ssl

        self._connection = connection
        self._not_now = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
        self._ended = False

    def receive_into(self, view: memoryview) -> int:
        """As many records as have come and as there is room for."""
        read, end, size = self._connection.read, 0, len(view)
        try:
            while end < size and not self._ended:
                count = int(read(size - end, view[end:]))  # typeshed: bytes, which it is without a buffer
                self._ended = count == 0
                end += count
        except self._not_now:
            if end == 0:
                raise BlockingIOError from None
        return end

    def send(self, view: memoryview) -> int:
        """A record of it."""
        try:
            return self._connection.send(view)
        except self._not_now:
            raise BlockingIOError from None


def _agree(end: StreamEnd, connection: socket.socket, *, server: bool) -> ssl.SSLSocket:
    """Both ends verified. Raises ssl.SSLError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are those of movers; compared below
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=end.authority)
    _load(context, end.certificate + end.key)
    joined = context.wrap_socket(connection, server_side=server)
    subject: Any = (joined.getpeercert() or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    if names != [end.peer]:
        joined.close()
        raise ssl.SSLError(f"the other end is {names}, not {end.peer}")
    return joined


def _load(context: Any, pem: str) -> None:
    """OpenSSL takes files alone; this one has no name and is in memory."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class _Flow:
    """One direction: what was taken and is not yet handed on. Neither side waits."""

    def __init__(self, take: Callable[[memoryview], int], hand_on: Callable[[memoryview], int]) -> None:
        self._take, self._hand_on = take, hand_on
        self._view = memoryview(bytearray(BUFFER))
        self._held = self._view[:0]
        self.ended = False

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def step(self) -> bool:
        """Take and hand on what can be; whether anything moved."""
        moved = False
        if not self._held and not self.ended:
            try:
                count = self._take(self._view)
            except (BlockingIOError, InterruptedError):
                return False
            self.ended = count == 0
            self._held = self._view[:count]
            moved = True
        while self._held:
            try:
                self._held = self._held[self._hand_on(self._held) :]
            except (BlockingIOError, InterruptedError):
                return moved
            moved = True
        return moved


def _pump(network: socket.socket, line: Line, mover: socket.socket) -> None:
    for each in (network, mover):
        each.setblocking(False)
    out, back = _Flow(mover.recv_into, line.send), _Flow(line.receive_into, mover.send)
    poll = select.poll()
    while True:
        while out.step() | back.step():
            pass
        if (out.ended and not out.holds) or (back.ended and not back.holds):
            for each in (network, mover):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            return
        poll.register(network, (0 if back.holds else select.POLLIN) | (select.POLLOUT if out.holds else 0))
        poll.register(mover, (0 if out.holds else select.POLLIN) | (select.POLLOUT if back.holds else 0))
        poll.poll()
