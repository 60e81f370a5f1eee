"""Disks over VDDK handles: asynchronous over NBD, by threads over HotAdd and SAN."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from vrepl.errors import DiskError, LibraryError, TransportModeError, VreplError
from vrepl.extents import SECTOR, Extent, intersect
from vrepl.transport.buffers import MIB, ZEROS, Buffer
from vrepl.transport.disk import Completion
from vrepl.vddk import abi
from vrepl.vddk.api import DiskHandle
from vrepl.vddk.handles import DiskInfo

CHUNK = abi.MIN_CHUNK_SECTORS * SECTOR
"""Bytes: the finest answer that QueryAllocatedBlocks gives, and vrepl's grain."""
QUERY = 8 << 30
"""Bytes asked of QueryAllocatedBlocks at a time: 131,072 chunks, far below its limit, so that answers stay small."""
WORKING_SET = 8 * MIB
DIRECT_READERS = 2
"""Handles that read one disk over HotAdd or SAN, each with a thread of its own."""


def query_allocated(handle: DiskHandle, capacity: int, extent: Extent) -> Iterator[Extent]:
    """Allocated parts of `extent`, ascending, one query after the other; what VDDK cannot tell counts as allocated.

    VDDK takes whole chunks that end on the disk: the disk's last bytes that make no chunk are taken as allocated.
    """
    position = extent.offset // CHUNK * CHUNK
    whole = min(-(-extent.end // CHUNK) * CHUNK, capacity // CHUNK * CHUNK)
    while position < whole:
        length = min(QUERY, whole - position)
        try:
            found = handle.allocated(position, length, CHUNK)
        except (DiskError, LibraryError):
            yield from intersect([Extent(position, extent.end - position)], [extent])
            return
        yield from intersect(found, [extent])
        position += length
    yield from intersect([Extent(whole, max(capacity - whole, 0))], [extent])


class AsyncDisk:
    """A handle over nbd or nbdssl, where VDDK's asynchronous calls are real. Owned by the thread that made it."""

    splits_zeros = False
    working_set = WORKING_SET
    block = 2 * MIB
    """Two of the 1 MiB NFC buffers that VMware recommends: what a call costs beside its bytes (a completion, waking up,
    over the wire an acknowledgement) is paid half as often; 10 % faster and 10 % less processor time in the lab. Of
    4 MiB a processor's cache keeps too little from one stage to the next."""

    def __init__(self, handle: DiskHandle, *, close: Callable[[], None] = lambda: None) -> None:
        """`close` ends what the handle stands on (its connection)."""
        self._handle = handle
        self._close = close
        self.mode = handle.mode
        info = handle.info()
        self.capacity, self.uuid = info.capacity, info.uuid

    def allocated(self, extent: Extent) -> Iterator[Extent]:
        return query_allocated(self._handle, self.capacity, extent)

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._handle.read_async(offset, length, buffer.address + start, done)

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._handle.write_async(offset, length, buffer.address + start, done)

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self._handle.write_async(offset, length, ZEROS.address, done)

    def wait(self) -> None:
        self._handle.wait()

    def flush(self) -> None:
        self._handle.flush()

    def close(self) -> None:
        try:
            self._handle.close()
        finally:
            self._close()


OpenHandle = Callable[[], tuple[DiskHandle, Callable[[], None]]]
"""Opens a handle for the calling thread, and says how to end what it stands on. Raises DiskError."""


class _Owner:
    """A thread that opens a handle, makes calls on it one after the other, and closes it."""

    def __init__(self, open_handle: OpenHandle) -> None:
        """Raises DiskError if the handle cannot be opened."""
        self.calls: SimpleQueue[Callable[[DiskHandle], None] | None] = SimpleQueue()
        self.close_error: DiskError | None = None
        self.mode = ""
        self.info: DiskInfo | None = None
        opened: SimpleQueue[DiskError | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, args=(open_handle, opened), name="vddk-owner", daemon=True)
        self._thread.start()
        error = opened.get()
        if error is not None:
            self._thread.join()
            raise error

    def end(self) -> None:
        """Let the calls end, close the handle."""
        self.calls.put(None)
        self._thread.join()

    def _serve(self, open_handle: OpenHandle, opened: SimpleQueue[DiskError | None]) -> None:
        try:
            handle, close = open_handle()
        except DiskError as error:
            opened.put(error)
            return
        try:
            try:
                self.mode, self.info = handle.mode, handle.info()
            except DiskError as error:
                opened.put(error)
                return
            opened.put(None)
            while (call := self.calls.get()) is not None:
                call(handle)
        finally:
            try:
                handle.close()
            except DiskError as error:
                self.close_error = error
            close()


class DirectDisk:
    """Handles over hotadd or san, each owned by a thread: there VDDK's calls are synchronous underneath.

    A disk for writing has one handle, so that writes go one at a time.
    """

    splits_zeros = False
    working_set = WORKING_SET
    block = MIB

    def __init__(self, open_handle: OpenHandle, handles: int, *, side: str | None = None) -> None:
        """Raises DiskError if the first handle cannot be opened; fewer than asked for are enough.

        `side`: the side of a transfer that a failure of the transport mode is held against.
        """
        self._side = side
        self._in_flight = 0
        self._idle = threading.Condition()
        self._owners = [_Owner(open_handle)]
        info = self._owners[0].info
        if info is None:
            raise AssertionError("an open handle has told what it is")
        self.mode, self.capacity, self.uuid = self._owners[0].mode, info.capacity, info.uuid
        try:
            while len(self._owners) < handles:
                self._owners.append(_Owner(open_handle))
        except DiskError:  # one handle is enough
            pass

    def allocated(self, extent: Extent) -> Iterator[Extent]:
        """Asked by the thread of the first handle, one query at a time."""
        position = extent.offset
        while position < extent.end:
            step = Extent(position, min(QUERY - position % QUERY, extent.end - position))
            found: list[Extent] = []

            def query(handle: DiskHandle, step: Extent = step, found: list[Extent] = found) -> None:
                found.extend(query_allocated(handle, self.capacity, step))

            self._ask(query)
            yield from found
            position = step.end

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._submit(lambda handle: handle.read(offset, length, buffer.address + start), done)

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._submit(lambda handle: handle.write(offset, length, buffer.address + start), done)

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self._submit(lambda handle: handle.write(offset, length, ZEROS.address), done)

    def wait(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._in_flight == 0)

    def flush(self) -> None:
        self.wait()
        self._ask(lambda handle: handle.flush())

    def close(self) -> None:
        owners, self._owners = self._owners, []
        for owner in owners:
            owner.end()
        for owner in owners:
            if owner.close_error is not None:
                raise self._of_this_side(owner.close_error)

    def _submit(self, call: Callable[[DiskHandle], None], done: Completion) -> None:
        with self._idle:
            self._in_flight += 1

        def perform(handle: DiskHandle) -> None:
            error: DiskError | None = None
            try:
                call(handle)
            except DiskError as caught:
                error = self._of_this_side(caught)
            with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()
            done(error)

        min(self._owners, key=lambda owner: owner.calls.qsize()).calls.put(perform)

    def _of_this_side(self, error: DiskError) -> DiskError:
        if isinstance(error, TransportModeError):
            error.side = self._side
        return error

    def _ask(self, call: Callable[[DiskHandle], None]) -> None:
        """Have the first handle's thread make a call; raises what it raised."""
        answers: SimpleQueue[VreplError | None] = SimpleQueue()

        def perform(handle: DiskHandle) -> None:
            try:
                call(handle)
            except VreplError as caught:
                answers.put(self._of_this_side(caught) if isinstance(caught, DiskError) else caught)
            else:
                answers.put(None)

        self._owners[0].calls.put(perform)
        answer = answers.get()
        if answer is not None:
            raise answer
