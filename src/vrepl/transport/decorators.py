"""Disks around disks: one counts, one fails on purpose, one answers late, one is held to a rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue

from vrepl.errors import DiskError
from vrepl.extents import GRAIN, Extent, split, subtract
from vrepl.transport.buffers import Buffer
from vrepl.transport.disk import Completion, DiskReader, DiskWriter
from vrepl.transport.throttle import Throttle


class PassingDisk:
    """Passes everything on; a base for the others. A reader will do where nothing is written."""

    def __init__(self, inner: DiskReader | DiskWriter) -> None:
        self._inner = inner

    @property
    def capacity(self) -> int:
        return self._inner.capacity

    @property
    def mode(self) -> str:
        return self._inner.mode

    @property
    def working_set(self) -> int:
        return self._inner.working_set

    @property
    def block(self) -> int:
        return self._inner.block

    @property
    def splits_zeros(self) -> bool:
        return self._writer.splits_zeros

    @property
    def network_share(self) -> float:
        """As `remote.RemoteDisk.network_share`; 0 for a disk that no stream lies before."""
        return float(getattr(self._inner, "network_share", 0.0))

    @property
    def flush_waits(self) -> bool:
        """As `remote.RemoteDisk.flush_waits`."""
        return bool(getattr(self._inner, "flush_waits", False))

    @property
    def durable_seconds(self) -> float | None:
        """As `checkpoints.pace_of` wants it; None for a disk on which a flush is enough."""
        return getattr(self._inner, "durable_seconds", None)

    @property
    def durable_bytes(self) -> int | None:
        return getattr(self._inner, "durable_bytes", None)

    @property
    def _writer(self) -> DiskWriter:
        return self._inner  # type: ignore[return-value]

    def allocated(self, extent: Extent) -> Iterator[Extent]:
        return self._inner.allocated(extent)

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._inner.submit_read(offset, buffer, start, length, done)

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._writer.submit_write(offset, buffer, start, length, done)

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self._writer.submit_zeros(offset, length, done)

    def wait(self) -> None:
        self._writer.wait()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._inner.close()


class CountingDisk(PassingDisk):
    """Remembers what was read and written, in the order of submission."""

    def __init__(self, inner: DiskReader | DiskWriter) -> None:
        super().__init__(inner)
        self.reads: list[Extent] = []
        self.writes: list[Extent] = []
        self.flushes = 0

    @property
    def bytes_written(self) -> int:
        return sum(extent.length for extent in self.writes)

    def writes_in_grains(self) -> list[Extent]:
        """The writes, cut at grains, in the order of submission."""
        return list(split(self.writes, GRAIN))

    def written_outside(self, regions: list[Extent]) -> list[Extent]:
        return subtract(self.writes, regions)

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self.reads.append(Extent(offset, length))
        super().submit_read(offset, buffer, start, length, done)

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self.writes.append(Extent(offset, length))
        super().submit_write(offset, buffer, start, length, done)

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self.writes.append(Extent(offset, length))
        super().submit_zeros(offset, length, done)

    def flush(self) -> None:
        self.flushes += 1
        super().flush()


class FailingDisk(PassingDisk):
    """Fails from the n-th call on: `{"write": (20, error)}`. Operations are read, write (zeros too), flush, close."""

    def __init__(self, inner: DiskReader | DiskWriter, script: Mapping[str, tuple[int, DiskError]]) -> None:
        super().__init__(inner)
        self._script = script
        self._calls = dict.fromkeys(script, 0)

    def _failure(self, operation: str) -> DiskError | None:
        if operation not in self._script:
            return None
        self._calls[operation] += 1
        first, error = self._script[operation]
        return error if self._calls[operation] >= first else None

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        if (error := self._failure("read")) is not None:
            done(error)
        else:
            super().submit_read(offset, buffer, start, length, done)

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        if (error := self._failure("write")) is not None:
            done(error)
        else:
            super().submit_write(offset, buffer, start, length, done)

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        if (error := self._failure("write")) is not None:
            done(error)
        else:
            super().submit_zeros(offset, length, done)

    def flush(self) -> None:
        if (error := self._failure("flush")) is not None:
            raise error
        super().flush()

    def close(self) -> None:
        super().close()
        if (error := self._failure("close")) is not None:
            raise error


class LateDisk(PassingDisk):
    """Completes from a thread of its own, some time after submission, as disks over a network do."""

    def __init__(self, inner: DiskReader | DiskWriter, seconds: float = 0.0) -> None:
        """`seconds`: what every call takes at least."""
        super().__init__(inner)
        self._seconds = seconds
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="late-disk", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while (call := self._queue.get()) is not None:
            time.sleep(self._seconds)
            call()

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._queue.put(lambda: self._inner.submit_read(offset, buffer, start, length, done))

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._queue.put(lambda: self._writer.submit_write(offset, buffer, start, length, done))

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self._queue.put(lambda: self._writer.submit_zeros(offset, length, done))

    def wait(self) -> None:
        reached = threading.Event()
        self._queue.put(reached.set)
        reached.wait()
        super().wait()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        super().close()


class ThrottledDisk(PassingDisk):
    """Held to a rate: a submission waits until its bytes may pass."""

    def __init__(self, inner: DiskReader | DiskWriter, throttle: Throttle) -> None:
        super().__init__(inner)
        self._throttle = throttle

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._throttle.take(length)
        super().submit_read(offset, buffer, start, length, done)

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._throttle.take(length)
        super().submit_write(offset, buffer, start, length, done)

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self._throttle.take(length)
        super().submit_zeros(offset, length, done)
