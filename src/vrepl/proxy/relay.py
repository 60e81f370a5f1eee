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
from contextlib import suppress
from typing import Any

from vrepl.stream.end import StreamEnd

PR_SET_PDEATHSIG = 1
BUFFER = 256 * 1024
WAIT_SECONDS = 60.0
"""For the other end to come, and to say who it is."""
SOCKET_BUFFER = 4 * 1024 * 1024


def relay(end: StreamEnd, listener: socket.socket | None, mover: socket.socket) -> None:
    """Until either side ends. What goes wrong is said on standard error, which the control process reads."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        connection = _connect(end, listener)
    except OSError as error:  # ssl.SSLError is one
        where = f"from port {listener.getsockname()[1]}" if listener is not None else f"to {end.address}:{end.port}"
        _say(f"no stream {where}: {error}")
        return
    with connection, mover:
        try:
            _pump(connection, mover)
        except OSError as error:
            _say(f"the stream between the data movers broke: {error}")


def _say(text: str) -> None:
    """To whoever reads what this machine's mover says."""
    os.write(2, f"{text}\n".encode())


def _connect(end: StreamEnd, listener: socket.socket | None) -> socket.socket:
    if listener is not None:
        with listener:
            listener.settimeout(WAIT_SECONDS)
            raw, _ = listener.accept()
    else:
        raw = socket.create_connection((end.address or "", end.port), WAIT_SECONDS)
    raw.settimeout(WAIT_SECONDS)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection = _secure(end, raw, server=listener is not None) if end.encrypted else raw
    connection.setblocking(False)
    return connection


def _secure(end: StreamEnd, raw: socket.socket, *, server: bool) -> socket.socket:
    """Both ends verified. Raises ssl.SSLError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are those of movers; compared below
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=end.authority)
    _load(context, end.certificate + end.key)
    connection = context.wrap_socket(raw, server_side=server)
    certificate = connection.getpeercert() or {}
    subject: Any = certificate.get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    if names != [end.peer]:
        connection.close()
        raise ssl.SSLError(f"the other end is {names}, not {end.peer}")
    return connection


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

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self.ended = False

    @property
    def holds(self) -> bool:
        return self._start < self._end

    def step(self) -> bool:
        """Take and hand on what can be; whether anything moved."""
        moved = False
        if not self.holds and not self.ended:
            moved = self._take()
        if self.holds:
            moved = self._hand_on() or moved
        return moved

    def _take(self) -> bool:
        try:
            count = self.source.recv_into(self._view)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if _wants_more(error):
                return False
            raise
        self._start, self._end = 0, count
        self.ended = count == 0
        return True

    def _hand_on(self) -> bool:
        moved = False
        while self.holds:
            try:
                self._start += self.sink.send(self._view[self._start : self._end])
            except (BlockingIOError, InterruptedError):
                return moved
            except OSError as error:
                if _wants_more(error):
                    return moved
                raise
            moved = True
        return moved


def _wants_more(error: OSError) -> bool:
    """TLS on a non-blocking socket says so by errors of its own."""
    return type(error).__name__ in {"SSLWantReadError", "SSLWantWriteError"}


def _pump(network: socket.socket, mover: socket.socket) -> None:
    mover.setblocking(False)
    out, back = _Flow(mover, network), _Flow(network, mover)
    poll = select.poll()
    while True:
        while out.step() | back.step():
            pass
        if (out.ended and not out.holds) or (back.ended and not back.holds):
            _finish(network, mover)
            return
        # TLS may want to read in order to write; waking for both costs little, as a full socket is the rare case.
        poll.register(network, (0 if back.holds else select.POLLIN) | (select.POLLOUT if out.holds else 0))
        poll.register(mover, (0 if out.holds else select.POLLIN) | (select.POLLOUT if back.holds else 0))
        poll.poll()


def _finish(network: socket.socket, mover: socket.socket) -> None:
    for each in (network, mover):
        with suppress(OSError):
            each.setblocking(True)
            each.shutdown(socket.SHUT_RDWR)
