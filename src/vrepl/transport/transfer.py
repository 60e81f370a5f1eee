"""One order on open disks: picks the write rule, runs the pipeline. The same in every process that moves data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Protocol

from vrepl.errors import DiskError, VerificationError, VreplError
from vrepl.extents import Extent, from_grains, total
from vrepl.ports import (
    DigestFiles,
    DigestLookup,
    DiskAddress,
    TransferLog,
    TransferOrder,
    TransferProgress,
    TransferResult,
    VerifyOrder,
    VerifyResult,
)
from vrepl.transport.checkpoints import Checkpoints, pace_of
from vrepl.transport.disk import DiskReader, DiskWriter
from vrepl.transport.hooks import Hook, SimulatedKill, no_hook
from vrepl.transport.pipeline import Pipeline
from vrepl.transport.tuning import DEFAULT_TUNING, Tuning
from vrepl.transport.write_rules import ComparisonRule, DigestRule, VerificationRule, WriteRule


class Opener(Protocol):
    """Opens disks; raises DiskError."""

    def open_reader(self, address: DiskAddress) -> DiskReader: ...

    def open_writer(self, address: DiskAddress) -> DiskWriter: ...


@dataclass(frozen=True, slots=True)
class Records:
    """How to open what a transfer reads and writes beside disks; both may raise RepositoryError."""

    open_lookup: Callable[[DigestFiles, int], DigestLookup]
    """Of a disk with so many bytes."""
    open_log: Callable[[TransferOrder], TransferLog]


Running = Callable[[Pipeline, bool], None]
"""Told when a pipeline starts (True) and ends (False), so that it can be stopped from elsewhere."""


def _ignore(pipeline: Pipeline, running: bool) -> None:
    pass


def copy_disk(
    order: TransferOrder,
    source: DiskReader,
    target: DiskWriter,
    lookup: DigestLookup,
    log: TransferLog,
    *,
    tuning: Tuning = DEFAULT_TUNING,
    progress: Callable[[TransferProgress], None] | None = None,
    hook: Hook = no_hook,
    running: Running = _ignore,
) -> Pipeline:
    """Bring the target's regions to the source's state; returns the finished pipeline for its figures.

    Raises DiskError, or InterruptedRunError when stopped; what was settled until then is in the log.
    """
    if source.capacity != target.capacity:
        raise DiskError(
            f"source disk has {source.capacity} bytes, target disk {target.capacity}",
            hint="the disks' sizes must be equal; a resized source disk needs on_resize",
        )
    rule: WriteRule
    if order.compare_with_target:
        everything = [Extent(0, target.capacity)]
        rule = ComparisonRule(target.allocated(everything[0]), order.dirty, split_zeros=target.splits_zeros)
    else:
        rule = DigestRule(lookup, order.dirty, split_zeros=target.splits_zeros)
    pipeline = Pipeline(
        source,
        target,
        rule,
        order.regions,
        allocated_only=order.allocated_only,
        checkpoints=Checkpoints(log, target.capacity, total(order.regions), pace=pace_of(target)),
        tuning=tuning,
        progress=progress,
        hook=hook,
    )
    _run(pipeline, running)
    return pipeline


def verify_disk(
    disk: DiskReader,
    lookup: DigestLookup,
    regions: Sequence[Extent] | None = None,
    *,
    tuning: Tuning = DEFAULT_TUNING,
    progress: Callable[[TransferProgress], None] | None = None,
    hook: Hook = no_hook,
    running: Running = _ignore,
) -> tuple[Pipeline, VerificationRule]:
    """Read what the disk (or `regions` of it) has allocated and compare all of it with its digests.

    The rule that is returned holds what differs. Raises VerificationError when grains of a whole disk have
    none, and no other is wrong.
    """
    rule = VerificationRule(lookup)
    pipeline = Pipeline(
        disk,
        None,
        rule,
        [Extent(0, disk.capacity)] if regions is None else regions,
        allocated_only=True,
        tuning=tuning,
        progress=progress,
        hook=hook,
    )
    _run(pipeline, running)
    if rule.unknown_grains and not rule.bad_grains and regions is None:
        raise VerificationError(
            f"{rule.unknown_grains} grains have no recorded digest to compare with",
            hint="a run that compares the whole disk records them; after a rebuild older restore points have none",
        )
    return pipeline, rule


def perform_transfer(
    order: TransferOrder,
    opener: Opener,
    records: Records,
    *,
    tuning: Tuning = DEFAULT_TUNING,
    progress: Callable[[TransferProgress], None] | None = None,
    hook: Hook = no_hook,
    running: Running = _ignore,
) -> TransferResult:
    """Open both disks, copy, close. Raises as `copy_disk`, and what opening and closing raise."""
    began = time.monotonic()
    source = opener.open_reader(order.source)
    try:
        target = opener.open_writer(order.target)
        try:
            # A data mover serves many disks: a lookup left open would cost it up to 29 descriptors for each.
            with (
                closing(records.open_lookup(order.parent, order.target.capacity)) as lookup,
                closing(records.open_log(order)) as log,
            ):
                pipeline = copy_disk(
                    order, source, target, lookup, log, tuning=tuning, progress=progress, hook=hook, running=running
                )
        except SimulatedKill:
            abandon = getattr(target, "abandon", None)
            if abandon is not None:
                abandon()
            raise
        except BaseException:
            with suppress(VreplError):  # the first error is the one that matters
                target.close()
            raise
        target.close()
    finally:
        with suppress(VreplError):  # nothing was written to it
            source.close()
    totals = pipeline.totals
    pipeline.waits.move_share(getattr(target, "network_share", 0.0), "target", "network")
    return TransferResult(
        bytes_read=totals.read,
        bytes_moved=totals.moved,
        bytes_skipped=totals.skipped,
        source_mode=source.mode,
        target_mode=target.mode,
        seconds=time.monotonic() - began,
        waits=pipeline.waits.as_dict(),
    )


def perform_verify(
    order: VerifyOrder,
    opener: Opener,
    records: Records,
    *,
    tuning: Tuning = DEFAULT_TUNING,
    progress: Callable[[TransferProgress], None] | None = None,
    hook: Hook = no_hook,
    running: Running = _ignore,
) -> VerifyResult:
    """Open the disk, verify, close. Raises as `verify_disk`, and what opening raises."""
    began = time.monotonic()
    disk = opener.open_reader(order.disk)
    try:
        with closing(records.open_lookup(order.digests, order.disk.capacity)) as lookup:
            pipeline, rule = verify_disk(
                disk, lookup, order.regions, tuning=tuning, progress=progress, hook=hook, running=running
            )
    finally:
        with suppress(DiskError):  # nothing was written to it
            disk.close()
    return VerifyResult(
        bytes_read=pipeline.totals.read,
        bad_extents=from_grains(rule.bad_grains, disk.capacity),
        mode=disk.mode,
        seconds=time.monotonic() - began,
        unknown_grains=rule.unknown_grains,
        zeroed_extents=from_grains(rule.zeroed_grains, disk.capacity),
    )


def _run(pipeline: Pipeline, running: Running) -> None:
    running(pipeline, True)
    try:
        pipeline.run()
    finally:
        running(pipeline, False)
