"""A disk that another data mover has open, at the far end of a byte stream.

Writes are acknowledged, and at most `WINDOW` of them are on their way. One thread sends (and compresses, when that
pays), one receives; the pipeline does neither. When the other end dies, every call ends with MoverError.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from queue import SimpleQueue
from typing import NamedTuple

from vrepl.errors import MoverError, StreamLostError, VreplError
from vrepl.extents import Extent
from vrepl.stream.compression import Compressor
from vrepl.stream.error_json import error_from_json
from vrepl.stream.splicing import PageSender
from vrepl.stream.wire import COMPRESSED, HEADER, Header, Kind, cut, prepare, receive_header, receive_into, send
from vrepl.transport.buffers import LARGEST, MIB, Buffer
from vrepl.transport.disk import Completion

WINDOW = 32
"""Messages that may be unanswered."""
WORKING_SET = 8 * MIB
"""Bytes in flight at the most where nothing is waited for but processors: less than for one mover's disks, as the other
mover's buffers hold them once more. A block for each processor is enough: on two, two are 10 % faster than four."""
QUERY = 8 << 30
"""Bytes asked about in one ALLOCATED: answers stay small."""
EXTENT = struct.Struct("<QQ")


class _Pending(NamedTuple):
    done: Completion
    view: memoryview | None
    """Where a READ's answer goes."""
    answer: list[bytes] | None
    """Where an ALLOCATED's or HELLO's answer goes."""
    sent_at: float
    closes: bool


class RemoteDisk:
    """`transport.disk.DiskWriter` over a connected stream socket."""

    splits_zeros = True
    flush_waits = True
    """FLUSH is answered after every write before it: over a long line the pipeline need not wait for those first."""

    def __init__(self, connection: socket.socket) -> None:
        """Waits for the other end to have opened its disk. Raises what that raised, or MoverError."""
        prepare(connection)
        self._connection = connection
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._lost: VreplError | None = None
        self._permits: SimpleQueue[None] = SimpleQueue()
        for _ in range(WINDOW):
            self._permits.put(None)
        self._outbox: SimpleQueue[tuple[Header, memoryview | None] | None] = SimpleQueue()
        self._compressor = Compressor()
        self._on_the_wire: dict[int, tuple[int, float]] = {}
        """Of writes that are not answered yet: bytes as they were sent, and the seconds that packing them took."""
        self._answered_at = 0.0
        self._closed = False
        self._answered_seconds = self._target_seconds = 0.0
        header = receive_header(connection, bytearray(HEADER.size))
        hello = bytearray(header.payload)
        receive_into(connection, memoryview(hello))
        if header.kind == Kind.FAILED:
            raise error_from_json(json.loads(hello))
        facts = json.loads(hello)
        self.capacity, self.mode = int(facts["capacity"]), str(facts["mode"])
        self.durable_seconds: float | None = facts.get("durable_seconds")
        """As `journal.pace_of` wants it of the disk at the other end."""
        self.durable_bytes: int | None = facts.get("durable_bytes")
        self.block = min(int(facts["block"]), LARGEST)
        self.working_set = min(WORKING_SET, len(os.sched_getaffinity(0)) * self.block)
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._send_loop, "stream-send"), (self._receive_loop, "stream-receive"))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def network_share(self) -> float:
        """Of the time that writes took, the part that was not the target's disk: 0 to 1."""
        if self._answered_seconds <= 0:
            return 0.0
        return max(0.0, 1.0 - self._target_seconds / self._answered_seconds)

    def allocated(self, extent: Extent) -> Iterator[Extent]:
        position = extent.offset
        while position < extent.end:
            length = min(QUERY - position % QUERY, extent.end - position)
            payload = self._ask(Kind.ALLOCATED, position, length)
            yield from (Extent(offset, size) for offset, size in EXTENT.iter_unpack(payload))
            position += length

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._submit(Kind.READ, offset, length, done, view=buffer.view[start : start + length])

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._submit(Kind.WRITE, offset, length, done, data=buffer.view[start : start + length])

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self._submit(Kind.ZEROS, offset, length, done)

    def wait(self) -> None:
        """Waiting happens in the flush."""

    def flush(self) -> None:
        self._ask(Kind.FLUSH, 0, 0)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._ask(Kind.CLOSE, 0, 0)
        finally:
            self._outbox.put(None)
            for thread in self._threads:
                thread.join()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _ask(self, kind: Kind, offset: int, length: int) -> bytes:
        """A question whose answer the pipeline waits for. Raises what the other end raised, or MoverError."""
        answers: SimpleQueue[VreplError | None] = SimpleQueue()
        payload: list[bytes] = []
        self._submit(kind, offset, length, answers.put, answer=payload)
        error = answers.get()
        if error is not None:
            raise error
        return payload[0] if payload else b""

    def _submit(
        self,
        kind: Kind,
        offset: int,
        length: int,
        done: Completion,
        *,
        view: memoryview | None = None,
        data: memoryview | None = None,
        answer: list[bytes] | None = None,
    ) -> None:
        self._permits.get()
        number = next(self._numbers)
        with self._lock:
            lost = self._lost
            if lost is None:
                self._pending[number] = _Pending(done, view, answer, time.perf_counter(), kind is Kind.CLOSE)
        if lost is not None:
            self._permits.put(None)
            done(lost)
            return
        self._outbox.put((Header(kind, 0, number, offset, length, 0 if data is None else len(data)), data))

    def _send_loop(self) -> None:
        """Thread: sends what was submitted, in order."""
        compressor, pages = self._compressor, PageSender(self._connection)
        with closing(pages), self._losing():
            while (message := self._outbox.get()) is not None:
                header, data = message
                began = time.perf_counter()
                packed = None if data is None else compressor.pack(data)
                if packed is not None:
                    header = header._replace(flag=COMPRESSED, payload=len(packed))
                if data is not None:
                    self._on_the_wire[header.number] = (header.payload, time.perf_counter() - began)
                send(self._connection, header, [] if packed is None else [packed])
                if data is not None and packed is None:
                    pages.send(data)

    def _receive_loop(self) -> None:
        """Thread: takes answers until the disk is closed or the other end is gone."""
        scratch = bytearray(HEADER.size)
        with self._losing():
            while not self._receive_one(scratch):
                pass

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """A thread that cannot go on ends the stream, whatever the reason: else somebody would wait for ever."""
        try:
            yield
        except VreplError as error:
            self._lose(error)
        except OSError as error:
            self._lose(StreamLostError(f"the stream to the other data mover broke: {error}"))
        except Exception as error:
            self._lose(MoverError(f"the stream to the other data mover cannot go on: {type(error).__name__}: {error}"))

    def _receive_one(self, scratch: bytearray) -> bool:
        """Returns True after the answer to CLOSE."""
        header = receive_header(self._connection, scratch)
        pending = self._pending[header.number]
        error: VreplError | None = None
        if header.kind == Kind.DONE and pending.view is not None:
            if header.payload != len(pending.view):
                raise MoverError(f"the other data mover read {header.payload} bytes instead of {len(pending.view)}")
            receive_into(self._connection, pending.view)
        elif header.payload:
            payload = bytearray(header.payload)
            receive_into(self._connection, memoryview(payload))
            if header.kind == Kind.FAILED:
                error = error_from_json(json.loads(payload))
            elif pending.answer is not None:
                pending.answer.append(bytes(payload))
        with self._lock:
            del self._pending[header.number]
        if pending.view is None and pending.answer is None:
            self._measure(header, pending.sent_at)
        self._permits.put(None)
        pending.done(error)
        return pending.closes

    def _measure(self, header: Header, sent_at: float) -> None:
        """What the answer to a write tells: of the time since the last one, what was neither packing nor the target.

        Sending alone tells nothing of a line: buffers on the way take megabytes at once.
        """
        now = time.perf_counter()
        target = header.length / 1e6
        self._answered_seconds += now - sent_at
        self._target_seconds += target
        payload, packing = self._on_the_wire.pop(header.number, (0, 0.0))
        self._compressor.sent(payload, max(0.0, now - max(self._answered_at, sent_at) - target - packing))
        self._answered_at = now

    def _lose(self, error: VreplError) -> None:
        """The stream is of no use any more: end every call that waits."""
        with self._lock:
            if self._lost is not None:
                return
            self._lost = error
            pending, self._pending = list(self._pending.values()), {}
        cut(self._connection)
        for entry in pending:
            self._permits.put(None)
            entry.done(error)
