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
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from vrepl.stream.end import StreamEnd

PR_SET_PDEATHSIG = 1
BUFFER = 256 * 1024
WAIT_SECONDS = 60.0
"""For the other end to come, and to say who it is."""
RECORD = 16 * 1024
"""Bytes of a TLS record at the most (RFC 8446, 5.1)."""


def relay(end: StreamEnd, listener: socket.socket | None, mover: socket.socket) -> None:
    """Until either side ends. What goes wrong is said on standard error, which the control process reads."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        joined = _connect(end, listener)
    except OSError as error:  # ssl.SSLError is one
        where = f"from port {listener.getsockname()[1]}" if listener is not None else f"to {end.address}:{end.port}"
        _say(f"no stream {where}: {error}")
        return
    connection, cipher = joined
    with connection, mover:
        try:
            _pump(connection, mover, cipher)
        except OSError as error:
            _say(f"the stream between the data movers broke: {error}")


def _say(text: str) -> None:
    """To whoever reads what this machine's mover says."""
    os.write(2, f"{text}\n".encode())


def _connect(end: StreamEnd, listener: socket.socket | None) -> tuple[socket.socket, Cipher]:
    if listener is not None:
        with listener:
            listener.settimeout(WAIT_SECONDS)
            connection, _ = listener.accept()
    else:
        connection = socket.create_connection((end.address or "", end.port), WAIT_SECONDS)
    connection.settimeout(WAIT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    try:
        return connection, _agree(end, connection, server=listener is not None) if end.encrypted else Plain()
    except BaseException:
        connection.close()
        raise


class Cipher(Protocol):
    """What makes bytes of the mover bytes of the network, and back."""

    def seal(self, data: memoryview) -> memoryview: ...

    def open(self, data: memoryview) -> memoryview:
        """Of what has arrived so far, what is whole. Valid until the next call."""
        ...


class Plain:
    def seal(self, data: memoryview) -> memoryview:
        return data

    def open(self, data: memoryview) -> memoryview:
        return data


class Tls:
    """TLS over memory: large pieces pass the socket, where OpenSSL alone would make a call for each record."""

    def __init__(self, context: Any, *, server: bool) -> None:
        import ssl

        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._connection = context.wrap_bio(self._arrived, self._leaving, server_side=server)
        self._wants_more = (ssl.SSLWantReadError, ssl.SSLSyscallError)
        self._opened = bytearray(BUFFER + 4 * RECORD)

    def shake_hands(self, connection: socket.socket) -> dict[str, Any]:
        """The other end's certificate. Blocks. Raises ssl.SSLError."""
        while True:
            try:
                self._connection.do_handshake()
                break
            except self._wants_more:
                connection.sendall(self._leaving.read())
                data = connection.recv(BUFFER)
                if not data:
                    raise ConnectionError("the other end hung up") from None
                self._arrived.write(data)
            except OSError:
                with suppress(OSError):
                    connection.sendall(self._leaving.read())  # the alert that says why
                raise
        connection.sendall(self._leaving.read())
        return dict(self._connection.getpeercert() or {})

    def seal(self, data: memoryview) -> memoryview:
        for at in range(0, len(data), RECORD):
            self._connection.write(data[at : at + RECORD])
        return memoryview(self._leaving.read())

    def open(self, data: memoryview) -> memoryview:
        self._arrived.write(data)
        view = memoryview(self._opened)
        end = 0
        with suppress(*self._wants_more):
            while count := self._connection.read(len(view) - end, view[end:]):
                end += count
        return view[:end]


def _agree(end: StreamEnd, connection: socket.socket, *, server: bool) -> Tls:
    """Both ends verified. Raises ssl.SSLError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are those of movers; compared below
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=end.authority)
    _load(context, end.certificate + end.key)
    cipher = Tls(context, server=server)
    subject: Any = cipher.shake_hands(connection).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    if names != [end.peer]:
        raise ssl.SSLError(f"the other end is {names}, not {end.peer}")
    return cipher


def _load(context: Any, pem: str) -> None:
    """OpenSSL takes files alone; this one has no name and is in memory."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class _Flow:
    """One direction: what was taken and is not yet handed on. Both sockets are non-blocking."""

    def __init__(self, source: socket.socket, sink: socket.socket, change: Callable[[memoryview], memoryview]) -> None:
        self.source, self.sink, self._change = source, sink, change
        self._view = memoryview(bytearray(BUFFER))
        self._held = memoryview(b"")
        self.ended = False

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def step(self) -> bool:
        """Take and hand on what can be; whether anything moved."""
        moved = False
        if not self._held and not self.ended:
            try:
                count = self.source.recv_into(self._view)
            except (BlockingIOError, InterruptedError):
                return False
            self.ended = count == 0
            self._held = self._change(self._view[:count]) if count else self._held
            moved = True
        while self._held:
            try:
                self._held = self._held[self.sink.send(self._held) :]
            except (BlockingIOError, InterruptedError):
                return moved
            moved = True
        return moved


def _pump(network: socket.socket, mover: socket.socket, cipher: Cipher) -> None:
    for each in (network, mover):
        each.setblocking(False)
    out, back = _Flow(mover, network, cipher.seal), _Flow(network, mover, cipher.open)
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
