"""A disk over NFC: `transport.disk.DiskWriter`.

What was written is durable once the disk was closed and a part of it was read back through a new session: `flush` and
`close` do both. The disk is opened again when there is something to do again.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

from vrepl.errors import DiskError, VreplError
from vrepl.extents import GRAIN, Extent, intersect
from vrepl.movers.allocation import Allocation
from vrepl.nfc import frames
from vrepl.nfc.codes import CONNECTION_LOST, OUT_OF_RANGE, READ_ONLY, refused
from vrepl.nfc.frames import FrameError, Refusal
from vrepl.nfc.readback import Readback, Written, WrittenSince, digests_of
from vrepl.nfc.requests import Question, Read, Write
from vrepl.nfc.session import Session
from vrepl.transport.buffers import LARGEST, MIB, ZEROS, Buffer
from vrepl.transport.disk import Completion
from vrepl.transport.grains import ZERO_DIGEST

LARGEST_READ = MIB
"""Bytes of one read: the most that a host answers (vatesfr/xen-orchestra vectura, host-requirements-and-limits)."""
QUERY = 8 << 30
"""Bytes whose allocation is asked about at a time: 131,072 chunks, 16 KiB of answer."""
DURABLE_SECONDS = 60.0
DURABLE_BYTES = 4 << 30
READ_BACK_AT_ONCE = 6
"""MiB of buffers for reading back: some are on their way while one is compared."""

OpenSession = Callable[[bool], Session]
"""A new session to the disk's host, for writing or not. Raises VreplError."""


class OpenFile:
    """The disk's file, open in a session."""

    def __init__(self, session: Session, path: str, *, writable: bool) -> None:
        """Raises DiskError and below; the session is given up then."""
        self.session = session
        name = path.encode()
        try:
            try:
                question = session.ask(
                    Question(
                        frames.OPEN_FILE, frames.open_file(name, writable=writable), f"opening {path}", trailer=name
                    )
                )
                opened = frames.decode_opened(question.answer)
            except Refusal as refusal:
                raise refused(f"opening {path}", refusal) from refusal
            except FrameError as error:
                raise DiskError(f"opening {path}: {error}", code=14010, hint="please report this") from error
            if opened.sector != 512 or opened.capacity % 512:
                raise DiskError(
                    f"{path} has sectors of {opened.sector} bytes, {opened.capacity} bytes in all",
                    code=6,
                    hint="vrepl's own engine takes disks with sectors of 512 bytes; VDDK may take this one",
                )
        except BaseException:
            session.abandon()
            raise
        self.handle, self.capacity = opened.handle, opened.capacity

    def database(self, key: str) -> str:
        """A value of the disk's database; empty where it has none. Raises DiskError."""
        name = key.encode()
        question = self.session.ask(
            Question(
                frames.DDB_GET,
                frames.ddb_request(self.handle, name),
                f"asking for the disk's {key}",
                trailer=name,
                trailing=frames.ddb_value_size,
            )
        )
        return question.data.decode("utf-8", "replace")

    def allocated(self, offset: int, chunks: int) -> list[Extent]:
        """Raises DiskError where the host does not tell."""
        question = self.session.ask(
            Question(
                frames.ALLOCATED,
                frames.allocated_request(self.handle, offset, chunks),
                "asking what is allocated",
                trailing=lambda payload: frames.allocated_bitmap_size(payload, chunks),
            )
        )
        return frames.decode_bitmap(question.data, offset, chunks)

    def close(self) -> None:
        """Nothing may be in flight. Raises DiskError where the host does not confirm it."""
        try:
            self.session.ask(Question(frames.CLOSE_FILE, frames.close_file(self.handle), "closing the disk"))
        except BaseException:
            self.session.abandon()
            raise
        self.session.end()


class NfcDisk:
    """Owned by the thread that made it."""

    splits_zeros = False
    working_set = 12 * MIB
    block = LARGEST
    """What a block costs beside its bytes is paid half as often as with 1 MiB; a write is a request of its own."""
    durable_seconds = DURABLE_SECONDS
    """Closing and opening costs a ticket, three handshakes and reading back: it is done this seldom."""
    durable_bytes = DURABLE_BYTES

    def __init__(
        self,
        open_session: OpenSession,
        path: str,
        mode: str,
        *,
        writable: bool,
        readback: Readback = Readback.SAMPLE,
        compression: int = frames.STORED,
        chance: Callable[[int], int] = secrets.randbelow,
        tracked: Allocation = lambda: None,
    ) -> None:
        """`tracked`: what is allocated, where the host does not tell. Raises DiskError and below."""
        self._tracked = tracked
        self._open_session = open_session
        self._path = path
        self.mode = mode
        self._writable = writable
        self._compression = compression
        self._written = WrittenSince(readback, chance)
        self._scratch = bytearray(frames.LARGEST_PIECE) if compression else bytearray()
        self._closed = False
        self._failed: VreplError | None = None
        self._may_ask_allocation = True
        self._file: OpenFile | None = self._open(writable)
        self.capacity = self._file.capacity
        try:
            self.uuid = self._file.database("uuid")
        except BaseException:
            self._file.session.abandon()
            raise

    def allocated(self, extent: Extent) -> Iterator[Extent]:
        """By the host's map, whole chunks at a time; the disk's last bytes that make no chunk count as allocated.

        Not asked of a handle that wrote, which may not know yet (hystax/OpenVixDiskLib docs/nfc_read.md).
        """
        position = extent.offset // frames.CHUNK * frames.CHUNK
        whole = min(-(-extent.end // frames.CHUNK), self.capacity // frames.CHUNK) * frames.CHUNK
        while position < whole and self._may_ask_allocation and not self._written.bytes:
            length = min(QUERY, whole - position)
            file = self._opened()
            try:
                found = file.allocated(position, length // frames.CHUNK)
            except DiskError:
                self._may_ask_allocation = False
                break
            yield from intersect(found, [extent])
            position += length
        left = [Extent(position, max(extent.end - position, 0))]
        if not self._may_ask_allocation:
            known = self._tracked()
            left = left if known is None else intersect(known, left)
        yield from intersect(left, [extent])

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        file = self._file_for(offset, length, done, writing=False)
        if file is None:
            return
        parts = range(0, length, LARGEST_READ)
        part_done = _all_of(len(parts), done)
        for part in parts:
            view = buffer.view[start + part : start + min(part + LARGEST_READ, length)]
            file.session.submit(Read(file.handle, offset + part, view, self._compression, self._scratch, part_done))

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        view = buffer.view[start : start + length]
        self._write(offset, view, None if buffer.hashed is None else buffer.hashed.of(start, length), done)

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self._write(offset, ZEROS.view[:length], [ZERO_DIGEST] * -(-length // GRAIN), done)

    def wait(self) -> None:
        if self._file is not None:
            self._file.session.wait()

    def flush(self) -> None:
        """Close the disk, and read a part of what was written back through a new session. Raises DiskError."""
        if not self._written.bytes:
            return
        if self._failed is not None:
            raise self._failed
        try:
            self._close_file()
            self._read_back()
        except VreplError as error:
            self._failed = error  # what was written since the last close may be there or not
            raise
        self._written.clear()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._writable:
                self.flush()
            self._close_file()
        except VreplError:
            self._drop()
            if self._writable:
                raise

    def abandon(self) -> None:
        """Leave it as a dead process would."""
        self._closed = True
        self._drop()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _open(self, writable: bool) -> OpenFile:
        return OpenFile(self._open_session(writable), self._path, writable=writable)

    def _opened(self) -> OpenFile:
        """Raises VreplError."""
        if self._file is None:
            self._file = self._open(self._writable)
        return self._file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.session.abandon()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.session.wait()
            file.close()

    def _file_for(self, offset: int, length: int, done: Completion, *, writing: bool) -> OpenFile | None:
        """The open file; None where the call has ended with an error."""
        error: VreplError | None = None
        if offset < 0 or length <= 0 or offset + length > self.capacity:
            error = DiskError(
                f"{length} bytes at offset {offset} lie outside of the disk's {self.capacity}",
                code=OUT_OF_RANGE,
                offset=offset,
            )
        elif writing and not self._writable:
            error = DiskError(f"{self._path} was opened for reading", code=READ_ONLY, offset=offset)
        elif self._closed:
            error = DiskError(f"{self._path} is closed", code=CONNECTION_LOST, offset=offset)
        else:
            try:
                return self._opened()
            except VreplError as caught:
                error = caught
        done(error)
        return None

    def _write(self, offset: int, view: memoryview, digests: Sequence[bytes] | None, done: Completion) -> None:
        """`digests`: of its grains, where somebody has hashed them already."""
        file = self._file_for(offset, len(view), done, writing=True)
        if file is None:
            return
        self._written.add(offset, len(view), digests_of(view) if digests is None else digests)

        def written(error: VreplError | None) -> None:
            if error is not None:
                self._failed = self._failed or error
            done(error)

        session = file.session
        session.submit(Write(file.handle, offset, view, session.limits.buffer_bytes, written))

    def _read_back(self) -> None:
        chosen = self._written.to_read_back()
        file = self._open(False)
        try:
            _compare(file, chosen, self._path)
        except BaseException:
            file.session.abandon()
            raise
        file.close()


def _compare(file: OpenFile, chosen: list[Written], path: str) -> None:
    """Raises DiskError for the first that is not what was written."""
    free = [Buffer(MIB) for _ in range(READ_BACK_AT_ONCE)]
    answers: SimpleQueue[tuple[Written, Buffer, VreplError | None]] = SimpleQueue()
    left, flying = list(reversed(chosen)), 0
    while left or flying:
        while left and free:
            write, buffer = left.pop(), free.pop()
            flying += 1

            def arrived(error: VreplError | None, write: Written = write, buffer: Buffer = buffer) -> None:
                answers.put((write, buffer, error))

            file.session.submit(
                Read(file.handle, write.offset, buffer.view[: write.length], frames.STORED, bytearray(), arrived)
            )
        write, buffer, error = answers.get()
        flying -= 1
        free.append(buffer)
        if error is not None:
            raise error
        if digests_of(buffer.view[: write.length]) != list(write.digests):
            raise DiskError(
                f"{path} holds other bytes at offset {write.offset} than were written there: {write.length} bytes read "
                "back through a new session differ",
                code=1,
                offset=write.offset,
                hint="does anything else write to the replica? If not, please report it; "
                'where VDDK is installed, [vddk] engine = "vddk" does without vrepl\'s own NFC',
            )


def _all_of(count: int, done: Completion) -> Completion:
    """One completion for `count` of them; the first error is told."""
    if count == 1:
        return done
    lock = threading.Lock()
    left, first = count, None

    def part_done(error: VreplError | None) -> None:
        nonlocal left, first
        with lock:
            left -= 1
            first = first or error
            ended = left == 0
        if ended:
            done(first)

    return part_done
