"""A block device as a disk that is read and written: past the page cache, by several threads."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol

from vrepl.errors import DiskError, TransportModeError, VreplError
from vrepl.extents import Extent, intersect
from vrepl.movers.allocation import Allocation
from vrepl.transport.buffers import LARGEST, MIB, ZEROS, Buffer
from vrepl.transport.disk import Completion

THREADS = 8
"""Requests in flight. Python lets go of its lock in preadv and pwritev, so they run side by side."""
OUT_OF_RANGE, READ_ONLY, CLOSED, IO_ERROR = 3, 11, 14011, 1
"""Codes as VDDK has them for the same (`vddk.codes`)."""

MODE = "hotadd"


class Transferred(Protocol):
    """`os.preadv` or `os.pwritev`."""

    def __call__(self, descriptor: int, buffers: list[memoryview], offset: int, /) -> int: ...


class BlockDisk:
    """Owned by the thread that made it."""

    splits_zeros = False
    working_set = 16 * MIB
    block = LARGEST
    """What a call costs beside its bytes is paid half as often as with 1 MiB: a tenth less processor time."""
    mode = MODE

    def __init__(
        self,
        descriptor: int,
        title: str,
        capacity: int,
        uuid: str,
        *,
        writable: bool,
        alignment: int = 512,
        cached: int | None = None,
        allocated: Allocation = lambda: None,
        still_there: Callable[[], bool] = lambda: True,
        closed: Callable[[], None] = lambda: None,
        threads: int = THREADS,
    ) -> None:
        """Takes over `descriptor`, open with O_DIRECT where `alignment` is more than 1 byte, and `cached`.

        `cached`: the same disk through the page cache, for what is not aligned. `still_there`: whether the device is
        the one that was opened; asked before anything written counts. `closed`: called once it is closed, whatever came
        of it; what it raises is raised by `close`.
        """
        self._descriptor = descriptor
        self._cached = cached
        self._alignment = alignment
        self._title = title
        self.capacity = capacity
        self.uuid = uuid
        self._writable = writable
        self._allocated = allocated
        self._still_there = still_there
        self._after = closed
        self._is_closed = False
        self._failed: VreplError | None = None
        self._in_flight = 0
        self._idle = threading.Condition()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"block-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def allocated(self, extent: Extent) -> Iterator[Extent]:
        known = self._allocated()
        yield from [extent] if known is None else intersect(known, [extent])

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._submit("reading", os.preadv, offset, buffer.view[start : start + length], done)

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._submit("writing", os.pwritev, offset, buffer.view[start : start + length], done)

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self._submit("writing", os.pwritev, offset, ZEROS.view[:length], done)

    def wait(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._in_flight == 0)

    def flush(self) -> None:
        """The disk has its own cache emptied, too (fdatasync on a block device)."""
        self.wait()
        if not self._writable:
            return
        if self._failed is not None:
            raise self._failed
        try:
            for descriptor in (self._descriptor, self._cached):
                if descriptor is not None:
                    os.fdatasync(descriptor)
        except OSError as error:
            # Linux tells of a lost write once: a second fsync may succeed and means nothing (fsync(2), "ERRORS").
            self._failed = self._error("flushing", error, None)
            raise self._failed from error
        if not self._still_there():
            gone = OSError(errno.ENODEV, "the device is gone, or is another disk now")
            self._failed = self._error("flushing", gone, None)
            raise self._failed

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.flush()
        finally:
            self._end()
            self._after()

    def abandon(self) -> None:
        """Leave it as a dead process would: nothing is flushed, and it stays attached."""
        self._is_closed = True
        self._end()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self.wait()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        for descriptor in (self._descriptor, self._cached):
            if descriptor is not None:
                with suppress(OSError):
                    os.close(descriptor)

    def _submit(self, what: str, move: Transferred, offset: int, view: memoryview, done: Completion) -> None:
        refused = self._refused(what, offset, len(view))
        if refused is not None:
            done(refused)
            return
        with self._idle:
            self._in_flight += 1

        def perform() -> None:
            error: VreplError | None = None
            try:
                self._move(move, offset, view)
            except OSError as caught:
                error = self._error(what, caught, offset)
                if what == "writing":
                    self._failed = self._failed or error
            with self._idle:
                self._in_flight -= 1
                if self._in_flight == 0:
                    self._idle.notify_all()
            done(error)

        self._calls.put(perform)

    def _refused(self, what: str, offset: int, length: int) -> DiskError | None:
        if self._is_closed:
            return DiskError(f"{self._title} is closed", code=CLOSED, offset=offset)
        if offset < 0 or length <= 0 or offset + length > self.capacity:
            return DiskError(
                f"{length} bytes at offset {offset} lie outside of the {self.capacity} bytes of {self._title}",
                code=OUT_OF_RANGE,
                offset=offset,
            )
        if what == "writing" and not self._writable:
            return DiskError(f"{self._title} was opened for reading", code=READ_ONLY, offset=offset)
        return None

    def _move(self, move: Transferred, offset: int, view: memoryview) -> None:
        """All of it; a call may move less than it was asked to."""
        descriptor = self._descriptor
        if self._cached is not None and (offset % self._alignment or len(view) % self._alignment):
            descriptor = self._cached
        while view:
            moved = move(descriptor, [view], offset)
            if moved <= 0:
                raise OSError(errno.ENODEV, "the device ends before the disk does: was it taken away?")
            offset += moved
            view = view[moved:]

    def _error(self, what: str, error: OSError, offset: int | None) -> TransportModeError:
        at = "" if offset is None else f" at offset {offset}"
        return TransportModeError(
            f"{what} {self._title}{at}: {error.strerror or error}, over {MODE}",
            mode=MODE,
            code=IO_ERROR,
            offset=offset,
            side="target" if self._writable else "source",
            hint="was the disk detached from the proxy? Its kernel log tells more",
        )

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
