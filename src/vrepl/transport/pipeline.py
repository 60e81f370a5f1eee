"""The copy pipeline: one for full, incremental and comparing transfers and for verification.

    work -> read into a free buffer -> zeros and digests -> write rule -> write what must be -> buffer is free again

The thread that calls `run` owns both disks: it alone submits, decides and checkpoints, and sleeps on one queue that
completions (from the disks' threads) and buffers that others have hashed arrive in. Memory is the ring of
buffers, whatever the size of the disk. The first error stops the intake; what is in flight is waited for; then the
error is raised, with its offset and code.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from vrepl.errors import InterruptedRunError, VreplError
from vrepl.extents import Extent, split, total
from vrepl.ports import TransferProgress
from vrepl.transport.buffers import MIB
from vrepl.transport.checkpoints import Checkpoints
from vrepl.transport.depth import Depth
from vrepl.transport.disk import DiskReader, DiskWriter
from vrepl.transport.grains import ZERO_DIGEST
from vrepl.transport.hashing import Hashing
from vrepl.transport.hooks import Hook, Point, no_hook
from vrepl.transport.slots import Slot, ZeroWrite
from vrepl.transport.tuning import DEFAULT_TUNING, Tuning
from vrepl.transport.waits import Waits
from vrepl.transport.work import Block, Packer, Stretch, survey
from vrepl.transport.write_rules import Run, Settled, WriteRule, WriteZeros, ZeroWork

PROGRESS_SECONDS = 0.2


@dataclass(slots=True)
class Totals:
    """Bytes, as `ports.TransferResult` means them."""

    read: int = 0
    moved: int = 0
    skipped: int = 0


class Pipeline:
    """One pass over the regions of one disk; `run` once, `stop` from any thread."""

    def __init__(
        self,
        source: DiskReader,
        target: DiskWriter | None,
        rule: WriteRule,
        regions: Sequence[Extent],
        *,
        allocated_only: bool,
        checkpoints: Checkpoints | None = None,
        tuning: Tuning = DEFAULT_TUNING,
        progress: Callable[[TransferProgress], None] | None = None,
        hook: Hook = no_hook,
    ) -> None:
        self._source = source
        self._target = target
        self._rule = rule
        self._checkpoints = checkpoints
        self._progress = progress
        self._hook = hook
        self._figures = TransferProgress(planned=total(regions))
        disks = [source] if target is None else [source, target]
        self._block = min(disk.block for disk in disks)
        buffers = max(tuning.buffers * MIB // self._block, 2)
        self._depth = Depth(buffers, self._block, min(disk.working_set for disk in disks))
        self._work = self._work_of(regions, allocated_only)
        self._next: Block | WriteZeros | Settled | None = None
        self._events: SimpleQueue[tuple[str, Slot | ZeroWrite | None]] = SimpleQueue()
        self._hashing = Hashing(tuning.hashers, self._slot_hashed)
        self._slots = [Slot(self._slot_read, self._written, compares=rule.compares) for _ in range(buffers)]
        self._free = deque(self._slots)
        self._ready: deque[Slot] = deque()
        self._reading = self._writing = 0
        self._bytes_arrived = 0
        self._unflushed = False
        self._stopped = False
        self._failure: Exception | None = None
        self._read_failure: VreplError | None = None
        self._write_failed = False
        self._reported = 0.0
        self.totals = Totals()
        self.waits = Waits()

    # -- from any thread ---------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make `run` end soon with InterruptedRunError; what is settled until then is checkpointed."""
        self._stopped = True
        self._events.put(("stop", None))

    def _slot_read(self, slot: Slot) -> None:
        """A disk's thread: every piece of the buffer is read, or failed."""
        if slot.error is not None:
            self._events.put(("hashed", slot))
        else:
            self._hashing.arrived(slot)
            self._events.put(("read", None))

    def _slot_hashed(self, slot: Slot) -> None:
        """A helper's thread."""
        self._events.put(("hashed", slot))

    def _written(self, slot: Slot | ZeroWrite) -> None:
        """A disk's thread: every run of the buffer, or the zeros, are written, or failed."""
        self._events.put(("written", slot))

    # -- the owner's thread ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Go through all regions. Raises the first DiskError, or InterruptedRunError."""
        self._hashing.start()
        self.waits.start()
        try:
            self._hook(Point.OPENED, 0)
            self._loop()
        finally:
            self._hashing.end()
            self.waits.end()
            self._part_with_buffers()

    def _part_with_buffers(self) -> None:
        """Give them back for the next transfer; after an error nobody gets them.

        A disk's thread may still use them, and a stream that was lost may still refer to their pages: what the next
        transfer puts there would go to this one's target.
        """
        if not (self._reading or self._writing):
            for slot in self._slots:
                slot.give_back() if self._failure is None else slot.drop()
        self._slots.clear()
        self._free.clear()
        self._ready.clear()

    def _loop(self) -> None:
        try:
            while True:
                self._intake()
                if self._next is None and not (self._reading or self._writing or self._ready):
                    break
                self._handle_events()
                if self._checkpoints is not None and self._checkpoints.due:
                    self._checkpoint()
                self._report()
        except VreplError as error:
            self._fail(error)
        except Exception as error:  # a mistake in vrepl: buffers must not go away under the disks' threads
            self._write_failed = True
            self._fail(error)
        self._finish()

    def _intake(self) -> None:
        """Write what is decided, then take on new work, as far as buffers allow."""
        if self._stopped:
            raise InterruptedRunError("stopped")
        while self._ready:
            self._write(self._ready.popleft())
        while True:
            if self._next is None:
                self._next = next(self._work, None)
            work = self._next
            if work is None:
                return
            if isinstance(work, Settled):
                self._settle_zeros(work.extent)
            elif isinstance(work, WriteZeros):
                if self._writing >= len(self._slots):
                    return
                self._write_zeros(work.extent)
            elif self._free and self._reading < self._depth.reads and self._in_use < self._depth.in_use:
                self._read(self._free.pop(), work)
            else:
                return
            self._next = None

    @property
    def _in_use(self) -> int:
        return len(self._slots) - len(self._free)

    def _work_of(self, regions: Sequence[Extent], allocated_only: bool) -> Iterator[Block | WriteZeros | Settled]:
        packer = Packer(size=self._block)
        stretches: Iterator[Stretch] = survey(
            regions, self._source.allocated if allocated_only else None, self._source.capacity
        )
        for extent, data in stretches:
            if data:
                yield from packer.add(extent)
                continue
            work: ZeroWork
            for work in self._rule.zeros(extent):
                if isinstance(work, WriteZeros):
                    for piece in split([work.extent], MIB):
                        yield WriteZeros(piece)
                else:
                    yield work
        yield from packer.finish()

    def _read(self, slot: Slot, block: Block) -> None:
        slot.block = block
        slot.same = None
        slot.buffer.hashed = None
        self._reading += 1
        pieces = block.pieces
        if block.from_target:
            slot.expect(len(pieces))
            for offset, start, length in pieces:
                self._writer.submit_read(offset, slot.buffer, start, length, slot.read_done)
            return
        other = slot.other
        slot.expect(len(pieces) * (1 if other is None else 2))
        for offset, start, length in pieces:
            self.totals.read += length
            self._source.submit_read(offset, slot.buffer, start, length, slot.read_done)
            if other is not None:
                self._writer.submit_read(offset, other, start, length, slot.read_done)

    def _handle_events(self) -> None:
        """Sleep until something arrives, then take what has, up to the first buffer that was read.

        What becomes of that one (its write, the next read) goes out before this thread hashes another: the disks have
        something to do meanwhile.
        """
        events = self._events
        if events.empty():
            slowest, began = self._slowest(), time.perf_counter()
            event = events.get()
            self.waits.add(slowest, time.perf_counter() - began)
        else:
            event = events.get()
        while True:
            self._handle(*event)
            if event[0] in ("read", "hashed") or events.empty():
                return
            event = events.get()

    def _handle(self, kind: str, slot: Slot | ZeroWrite | None) -> None:
        if kind == "read":
            slot = self._hashing.take()
        if slot is None:  # a helper has taken it, or somebody wants a stop
            return
        if kind == "written" or isinstance(slot, ZeroWrite):
            self._writing -= 1
            if not isinstance(slot, ZeroWrite):
                self._free.append(slot)
            if slot.error is not None:
                self._write_failed = True
                raise slot.error
            return
        self._reading -= 1
        if slot.error is not None:
            self._free.append(slot)
            raise slot.error
        if self._failure is None:
            if kind == "read":
                self._hashing.hash(slot)
            self._decide_slot(slot)
        else:
            self._free.append(slot)

    def _decide_slot(self, slot: Slot) -> None:
        block = slot.block
        self._bytes_arrived += block.used
        self._depth.follow(self._bytes_arrived / max(self.waits.elapsed, 0.001))
        self._ready.append(slot)
        self._figures.bytes_read = self.totals.read
        if block.from_target:
            slot.same = [value == ZERO_DIGEST for value in slot.digests]
            slot.digests = [ZERO_DIGEST] * len(slot.digests)

    def _write(self, slot: Slot) -> None:
        block = slot.block
        length = block.wanted
        runs = self._rule.runs(block, slot.digests, slot.same)
        moved = self._submit_runs(slot, runs) if runs else 0
        self.totals.moved += moved
        self.totals.skipped += length - moved
        self._figures.settled += length
        self._figures.bytes_moved = self.totals.moved
        if self._checkpoints is not None:
            self._checkpoints.settle(block.spans, slot.digests, length)
        if not runs:
            self._free.append(slot)

    def _submit_runs(self, slot: Slot, runs: Sequence[Run]) -> int:
        target = self._writer
        last = runs[-1]
        self._before_write(last.offset + last.length)
        self._writing += 1
        slot.expect(len(runs))
        moved = 0
        for offset, start, length, zeros in runs:
            moved += length
            if zeros:
                target.submit_zeros(offset, length, slot.write_done)
            else:
                target.submit_write(offset, slot.buffer, start, length, slot.write_done)
        return moved

    def _write_zeros(self, extent: Extent) -> None:
        self._before_write(extent.end)
        self._writing += 1
        self.totals.moved += extent.length
        self.totals.skipped -= extent.length  # its stretch will be settled as skipped
        self._writer.submit_zeros(extent.offset, extent.length, ZeroWrite(self._written).write_done)

    def _before_write(self, end: int) -> None:
        if self._checkpoints is not None:
            self._checkpoints.before_write(end)
        self._unflushed = True
        self._hook(Point.WRITE, self._figures.settled)

    def _settle_zeros(self, extent: Extent) -> None:
        self.totals.skipped += extent.length
        self._figures.settled += extent.length
        self._figures.bytes_moved = self.totals.moved
        if self._checkpoints is not None:
            self._checkpoints.settle_zeros(extent)

    @property
    def _writer(self) -> DiskWriter:
        if self._target is None:
            raise AssertionError("a pipeline without a target has nothing to write")
        return self._target

    def _slowest(self) -> str:
        """Which stage holds most of the buffers: that is what the pipeline waits for now."""
        hashing = self._hashing.held
        held = {"target": self._writing, "source": self._reading - hashing, "mover": hashing}
        return max(held, key=held.__getitem__)

    # -- checkpoints, errors, the end --------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Let writes drain, wait, flush, record; reads go on meanwhile."""
        if self._checkpoints is None:
            return
        if not self._flush_waits:
            while self._writing:
                self._handle_events()
        self._checkpoints.checkpoint(self._flush)
        self._hook(Point.RECORDED, self._figures.settled)
        if self._read_failure is not None:
            error, self._read_failure = self._read_failure, None
            raise error

    @property
    def _flush_waits(self) -> bool:
        """Whether a flush, asked for at once, comes after the writes that were submitted: a way there and back less."""
        return bool(getattr(self._target, "flush_waits", False))

    def _flush(self) -> None:
        if not self._unflushed:
            return
        began = time.perf_counter()
        self._writer.wait()
        self._hook(Point.FLUSH, self._figures.settled)
        try:
            self._writer.flush()
        except VreplError:
            self._write_failed = True
            raise
        self.waits.add("target", time.perf_counter() - began)
        self._take_answers()
        self._unflushed = False
        self._hook(Point.FLUSHED, self._figures.settled)

    def _take_answers(self) -> None:
        """Of all writes, which were answered before the flush was. A failed read can wait until they are recorded."""
        while self._writing:
            try:
                self._handle_events()
            except VreplError as error:
                if self._write_failed:
                    raise
                self._read_failure = self._read_failure or error

    def _fail(self, error: Exception) -> None:
        """Keep the first error; wait for what is in flight, writing nothing more."""
        self._failure = error
        while self._reading or self._writing:
            try:
                self._handle_events()
            except VreplError:  # the first error is the one to report
                continue

    def _finish(self) -> None:
        """The last checkpoint: also after an error, unless writing itself failed."""
        if not self._write_failed:
            try:
                self._checkpoint()
            except VreplError as error:
                self._failure = self._failure or error
        self._report(force=True)
        if self._failure is not None:
            raise self._failure

    def _report(self, force: bool = False) -> None:
        if self._progress is None:
            return
        now = time.monotonic()
        if force or now - self._reported >= PROGRESS_SECONDS:
            self._reported = now
            self._figures.waits = self.waits.as_dict()
            self._progress(self._figures)
