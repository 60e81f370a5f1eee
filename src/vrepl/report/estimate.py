"""How long a plan will take, by what past runs moved in a second. A guess for people: nothing is decided by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vrepl.model import TransferKind
from vrepl.report.disk import DiskReport
from vrepl.report.model import RunReport

Rates = Mapping[tuple[str, int], float]
"""VM and disk index -> bytes read a second."""
SHORTEST = 0.05
"""Seconds: what took less says nothing of the rate."""


def past_rates(runs: Iterable[Mapping[str, Any]]) -> Rates:
    """Of run reports (JSON), newest first: each disk's newest rate."""
    rates: dict[tuple[str, int], float] = {}
    for run in runs:
        for vm in run.get("vms", ()):
            for disk in vm.get("disks", ()):
                read, seconds = disk.get("bytes_read"), disk.get("seconds")
                if read and seconds and seconds >= SHORTEST:
                    rates.setdefault((vm["name"], disk["index"]), read / seconds)
    return rates


def expected_bytes(disk: DiskReport) -> int:
    """What a planned disk will read: exactly, as much as last time, or at most."""
    if disk.bytes_read is not None:
        return disk.bytes_read
    if disk.kind is TransferKind.INCREMENTAL and disk.last_bytes_moved is not None:
        return disk.last_bytes_moved
    return disk.capacity if disk.bytes_bound is None else disk.bytes_bound


def estimate(report: RunReport, rates: Rates, parallel_disks: int) -> float | None:
    """Seconds that the transfers of a plan take; None where no past run says how fast any of it goes.

    A disk that never moved is taken to move as the slowest known one does.
    """
    disks = [(vm.name, disk) for vm in report.vms if vm.error is None for disk in vm.disks]
    known = [rates[name, disk.index] for name, disk in disks if (name, disk.index) in rates]
    if not known:
        return None
    slowest = min(known)
    times = [expected_bytes(disk) / rates.get((name, disk.index), slowest) for name, disk in disks]
    return max(*times, sum(times) / max(1, parallel_disks))
