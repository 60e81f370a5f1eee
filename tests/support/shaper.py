"""A line between two machines, in user space: delay, bandwidth, and silence. For kernels that have no netem."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress

Address = tuple[str, int]

PIECE = 16 * 1024
QUEUE_SECONDS = 0.05
"""What the line's own buffer holds beyond what is on its way."""


class Shaper:
    """Listens on a port for each that it leads to; both directions are delayed and held to the rate, each by itself."""

    def __init__(self, *, delay: float = 0.0, rate: float = 0.0) -> None:
        """`delay`: seconds one way; `rate`: bytes/s, 0: no limit."""
        self.delay, self.rate = delay, rate
        self.bytes_carried = 0
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []

    def lead_to(self, port: int) -> int:
        """A port of this machine that leads to that one."""
        return self.lead(("127.0.0.1", 0), ("127.0.0.1", port))

    def lead(self, near: Address, far: Address) -> int:
        """Listen there (port 0: any) for who wants to go to `far`; the port."""
        listener = socket.create_server(near)
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=(listener, far), daemon=True).start()
        return int(listener.getsockname()[1])

    def cut(self) -> None:
        """Nothing passes, and nobody is told."""
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._open.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket, address: Address) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                self._sockets.append(near)
                threading.Thread(target=self._join, args=(near, address), daemon=True).start()

    def _join(self, near: socket.socket, address: Address) -> None:
        self.wait_open()  # who calls while nothing passes is not answered either
        try:
            far = socket.create_connection(address)
        except OSError:
            near.close()
            return
        self._sockets.append(far)
        for each in (near, far):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink in ((near, far), (far, near)):
            _Direction(self, source, sink).start()

    def wait_open(self) -> None:
        self._open.wait()


class _Direction:
    def __init__(self, shaper: Shaper, source: socket.socket, sink: socket.socket) -> None:
        self._shaper, self._source, self._sink = shaper, source, sink
        self._held: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._ended = False
        self._changed = threading.Condition()

    def start(self) -> None:
        for target in (self._take, self._hand_on):
            threading.Thread(target=target, daemon=True).start()

    def _room(self) -> bool:
        shaper = self._shaper
        return not shaper.rate or self._bytes < shaper.rate * (shaper.delay + QUEUE_SECONDS)

    def _take(self) -> None:
        with suppress(OSError):
            while data := self._source.recv(PIECE):
                with self._changed:
                    self._changed.wait_for(self._room)
                    self._held.append((time.monotonic() + self._shaper.delay, data))
                    self._bytes += len(data)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _hand_on(self) -> None:
        free_at = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._ended)
                if not self._held:
                    break
                due, data = self._held.popleft()
                self._bytes -= len(data)
                self._changed.notify_all()
            rate = self._shaper.rate
            free_at = max(free_at, due) + (len(data) / rate if rate else 0.0)
            time.sleep(max(free_at - time.monotonic(), 0.0))
            self._shaper.wait_open()
            with suppress(OSError):
                self._sink.sendall(data)
                self._shaper.bytes_carried += len(data)
        with suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
