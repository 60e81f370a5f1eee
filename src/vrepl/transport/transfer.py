"""One order on open disks: picks the judge, runs the pipeline. The same in every process that moves data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vrepl.errors import DiskError, VerificationError
from vrepl.extents import Extent, from_grains, total
from vrepl.ports import DigestLookup, TransferLog, TransferOrder, TransferProgress
from vrepl.transport.disk import DiskReader, DiskWriter
from vrepl.transport.faults import Hook, no_hook
from vrepl.transport.journal import Journal
from vrepl.transport.judges import DigestJudge, Judge, TargetJudge, VerifyJudge
from vrepl.transport.pipeline import DEFAULT_TUNING, Pipeline, Tuning

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
    judge: Judge
    if order.read_target:
        everything = [Extent(0, target.capacity)]
        judge = TargetJudge(target.allocated(everything[0]), order.dirty, split_zeros=target.splits_zeros)
    else:
        judge = DigestJudge(lookup, order.dirty, split_zeros=target.splits_zeros)
    pipeline = Pipeline(
        source,
        target,
        judge,
        order.regions,
        allocated_only=order.allocated_only,
        journal=Journal(log, target.capacity, total(order.regions)),
        tuning=tuning,
        progress=progress,
        hook=hook,
    )
    _run(pipeline, running)
    return pipeline


def verify_disk(
    disk: DiskReader,
    lookup: DigestLookup,
    *,
    tuning: Tuning = DEFAULT_TUNING,
    progress: Callable[[TransferProgress], None] | None = None,
    hook: Hook = no_hook,
    running: Running = _ignore,
) -> tuple[Pipeline, Sequence[Extent]]:
    """Read what the disk has allocated and compare all of it with its digests; returns what differs.

    Raises VerificationError when grains have no digest to compare with, and no other is wrong.
    """
    judge = VerifyJudge(lookup, disk.capacity)
    pipeline = Pipeline(
        disk,
        None,
        judge,
        [Extent(0, disk.capacity)],
        allocated_only=True,
        tuning=tuning,
        progress=progress,
        hook=hook,
    )
    _run(pipeline, running)
    bad = from_grains(judge.bad_grains, disk.capacity)
    if judge.unknown_grains and not bad:
        raise VerificationError(
            f"{judge.unknown_grains} grains have no recorded digest to compare with",
            hint="the next replication, or `vrepl repository rebuild`, reads the disk and records its digests",
        )
    return pipeline, bad


def _run(pipeline: Pipeline, running: Running) -> None:
    running(pipeline, True)
    try:
        pipeline.run()
    finally:
        running(pipeline, False)
