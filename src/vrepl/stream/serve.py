"""The far end of a byte stream: serves one open disk to a `RemoteDisk`. The calling thread owns the disk."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from vrepl.errors import MoverError, VreplError
from vrepl.extents import Extent
from vrepl.stream.compression import Decompressor
from vrepl.stream.error_json import error_to_json
from vrepl.stream.remote import EXTENT
from vrepl.stream.wire import COMPRESSED, HEADER, Header, Kind, cut, prepare, receive_header, receive_into, send
from vrepl.transport.buffers import LARGEST, MIB, POOL, Buffer, FreeBuffers
from vrepl.transport.disk import Completion, DiskWriter

ARRIVED = 16 * MIB
"""Bytes that have arrived and are not yet on the disk."""


class DiskServer:
    """Takes commands for one disk until CLOSE, or until the other end goes."""

    def __init__(self, disk: DiskWriter, connection: socket.socket) -> None:
        self._disk = disk
        self._connection = connection
        self._answers: SimpleQueue[tuple[Header, memoryview | bytes | None, Buffer | None] | None] = SimpleQueue()
        self._own = [POOL.take() for _ in range(ARRIVED // disk.block)]
        self._buffers = FreeBuffers(self._own)
        self._sending = threading.Lock()
        self._decompressor = Decompressor()
        self._in_flight = 0
        self._idle = threading.Condition()
        self._scratch = bytearray(HEADER.size)
        self.bytes_received = 0
        """Of payload, as it came over the stream."""

    def run(self) -> None:
        """Say hello, serve, close the disk. Raises MoverError when the other end goes without CLOSE."""
        sender = threading.Thread(target=self._send_loop, name="stream-answers", daemon=True)
        sender.start()
        facts = {"capacity": self._disk.capacity, "mode": self._disk.mode, "block": self._disk.block}
        facts |= {name: getattr(self._disk, name, None) for name in ("durable_seconds", "durable_bytes")}
        hello = json.dumps(facts)
        self._answer(Header(Kind.HELLO, 0, 0, 0, 0, len(hello)), hello.encode())
        try:
            while self._serve_one():
                pass
        finally:
            self._drain()
            self._answers.put(None)
            sender.join()
            for buffer in self._own:
                POOL.give(buffer)

    def _serve_one(self) -> bool:
        header = receive_header(self._connection, self._scratch)
        match header.kind:
            case Kind.WRITE:
                self._write(header)
            case Kind.ZEROS:
                self._zeros(header)
            case Kind.READ:
                self._read(header)
            case Kind.ALLOCATED:
                self._ask(header, self._allocated)
            case Kind.FLUSH:
                self._drain()
                self._ask(header, self._flush)
            case Kind.CLOSE:
                self._drain()
                self._ask(header, self._close)
                return False
            case _:
                raise MoverError(f"the other data mover sent a message of kind {header.kind}")
        return True

    def _write(self, header: Header) -> None:
        buffer = self._buffers.take()
        if header.length > LARGEST or (not header.flag & COMPRESSED and header.payload != header.length):
            raise MoverError(f"the other data mover wants to write {header.length} bytes with {header.payload}")
        self.bytes_received += header.payload
        if header.flag & COMPRESSED:
            packed = bytearray(header.payload)
            receive_into(self._connection, memoryview(packed))
            try:
                self._decompressor.unpack(memoryview(packed), buffer.view[: header.length])
            except ValueError as error:
                raise MoverError(f"what the other data mover compressed cannot be read: {error}") from error
        else:
            receive_into(self._connection, buffer.view[: header.length])
        done = self._completion(header, buffer)
        self._submit(lambda: self._disk.submit_write(header.offset, buffer, 0, header.length, done))

    def _zeros(self, header: Header) -> None:
        if header.length > LARGEST:
            raise MoverError(f"the other data mover wants to write {header.length} bytes of zeros at once")
        done = self._completion(header, None)
        self._submit(lambda: self._disk.submit_zeros(header.offset, header.length, done))

    def _read(self, header: Header) -> None:
        buffer = self._buffers.take()
        if header.length > LARGEST:
            raise MoverError(f"the other data mover wants to read {header.length} bytes")

        def done(error: VreplError | None) -> None:
            if error is not None:
                self._buffers.give(buffer)
                self._fail(header, error)
            else:
                answer = header._replace(kind=Kind.DONE, payload=header.length)
                self._answers.put((answer, buffer.view[: header.length], buffer))
            self._end()

        self._submit(lambda: self._disk.submit_read(header.offset, buffer, 0, header.length, done))

    def _ask(self, header: Header, answer: Callable[[Header], bytes]) -> None:
        try:
            payload = answer(header)
        except VreplError as error:
            self._fail(header, error)
        else:
            self._answer(header._replace(kind=Kind.DONE, length=0, payload=len(payload)), payload)

    def _allocated(self, header: Header) -> bytes:
        return b"".join(EXTENT.pack(*extent) for extent in self._disk.allocated(Extent(header.offset, header.length)))

    def _flush(self, header: Header) -> bytes:
        self._disk.wait()
        self._disk.flush()
        return b""

    def _close(self, header: Header) -> bytes:
        self._disk.close()
        return b""

    def _completion(self, header: Header, buffer: Buffer | None) -> Completion:
        began = time.perf_counter()

        def done(error: VreplError | None) -> None:
            if buffer is not None:
                self._buffers.give(buffer)
            if error is not None:
                self._fail(header, error)
            else:
                took = int((time.perf_counter() - began) * 1e6)
                self._acknowledge(header._replace(kind=Kind.DONE, flag=0, length=took, payload=0))
            self._end()

        return done

    def _fail(self, header: Header, error: VreplError) -> None:
        payload = json.dumps(error_to_json(error)).encode()
        self._answer(header._replace(kind=Kind.FAILED, flag=0, payload=len(payload)), payload)

    def _answer(self, header: Header, payload: bytes) -> None:
        self._answers.put((header, payload or None, None))

    def _acknowledge(self, header: Header) -> None:
        """Answer at once where that takes no waiting: waking a thread for it costs more than sending it."""
        if not self._sending.acquire(blocking=False):
            self._answer(header, b"")
            return
        try:
            message = HEADER.pack(*header)
            sent = self._connection.send(message, socket.MSG_DONTWAIT)
            if sent < len(message):
                self._connection.sendall(message[sent:])
        except BlockingIOError:
            self._answer(header, b"")
        except OSError:
            cut(self._connection)  # most likely the other end is gone; if not, it must not wait for this answer
        finally:
            self._sending.release()

    def _submit(self, submit: Callable[[], None]) -> None:
        """What is submitted counts until it is done; a submission that raises is a mistake, and is none."""
        with self._idle:
            self._in_flight += 1
        try:
            submit()
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        with self._idle:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.notify_all()

    def _drain(self) -> None:
        """Wait for every submitted call: their answers go out before the one that is given next."""
        with self._idle:
            self._idle.wait_for(lambda: self._in_flight == 0)

    def _send_loop(self) -> None:
        """Thread: answers, so that no thread of the disk's waits for the stream."""
        broken = False
        while (message := self._answers.get()) is not None:
            header, payload, buffer = message
            if not broken:
                try:
                    with self._sending:
                        send(self._connection, header, [] if payload is None else [payload])
                except OSError:
                    broken = True
                    cut(self._connection)
            if buffer is not None:
                self._buffers.give(buffer)


def serve_disk(open_disk: Callable[[], DiskWriter], connection: socket.socket) -> int:
    """Open a disk and serve it; returns the bytes of payload received.

    What opening raises goes to the other end, and is raised here too.
    """
    prepare(connection)
    try:
        disk = open_disk()
    except VreplError as error:
        payload = json.dumps(error_to_json(error)).encode()
        send(connection, Header(Kind.FAILED, 0, 0, 0, 0, len(payload)), [payload])
        raise
    try:
        server = DiskServer(disk, connection)
        server.run()
    except BaseException:
        cut(connection)  # the process and its end of the stream live on
        with suppress(VreplError):  # the first error is the one that matters
            disk.close()
        raise
    return server.bytes_received
