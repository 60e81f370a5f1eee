"""Metrics for Prometheus (docs/monitoring.md). Their names are final.

Times are timestamps, never ages: a file that nobody writes any more would go on telling the same good age.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence

from vrepl.errors import UsageError
from vrepl.model import ReplicaState
from vrepl.report.model import Result
from vrepl.report.protection import Protection, VmProtection

LABELS = ("job", "vm")


def exposition(protection: Protection, version: str) -> bytes:
    """The text format. Raises UsageError where the extra `metrics` is not installed."""
    try:
        from prometheus_client import CollectorRegistry, Gauge, Info, generate_latest
    except ImportError as error:
        raise UsageError(
            "metrics take the package prometheus-client, which is not installed",
            hint="pip install 'vrepl[metrics]', or drop [metrics] from the configuration",
        ) from error
    registry = CollectorRegistry()

    def gauge(name: str, words: str, values: Mapping[tuple[str, ...], float], *more: str) -> None:
        made = Gauge(f"vrepl_{name}", words, (*LABELS, *more), registry=registry)
        for labels, value in values.items():
            made.labels(*labels).set(value)

    vms = protection.vms
    ran = [vm for vm in vms if vm.last_result is not None]
    Info("vrepl_build", "Which vrepl wrote this.", registry=registry).info({"version": version})
    gauge(
        "restore_point_timestamp_seconds",
        "When the source of the newest good restore point was snapshotted.",
        _times(vms, lambda vm: vm.restore_point_time),
    )
    gauge(
        "rpo_objective_seconds",
        "How old the newest good restore point may be (`rpo` of the job).",
        {_key(vm): vm.rpo for vm in vms if vm.rpo is not None and not vm.in_service},
    )
    gauge(
        "last_run_success",
        "Whether the last run of the VM made a restore point: 1 or 0.",
        {_key(vm): float(vm.last_result is Result.SUCCESS) for vm in ran},
    )
    gauge("last_run_timestamp_seconds", "When the last run of the VM ended.", _times(vms, lambda vm: vm.last_finished))
    gauge(
        "last_run_duration_seconds",
        "How long the last run worked on the VM.",
        {_key(vm): vm.last_seconds for vm in ran if vm.last_seconds is not None},
    )
    gauge(
        "last_run_bytes",
        "Bytes that the last run wrote for the VM.",
        {_key(vm): float(vm.last_bytes) for vm in ran if vm.last_bytes is not None},
    )
    gauge(
        "replica_state",
        "1 for the state that the replica is in, 0 for the others.",
        {
            (*_key(vm), state.value): float(vm.standing.state == state.value)
            for vm in vms
            if vm.standing is not None
            for state in ReplicaState
        },
        "state",
    )
    gauge(
        "failover_test_timestamp_seconds",
        "When failing over was last tested.",
        _times(vms, lambda vm: vm.standing.last_test if vm.standing is not None else None),
    )
    gauge(
        "verify_timestamp_seconds",
        "When the newest good restore point was read back, whole, and agreed with its digests.",
        _times(vms, lambda vm: vm.verified),
    )
    text: bytes = generate_latest(registry)
    return text


def _key(vm: VmProtection) -> tuple[str, str]:
    return vm.job, vm.name


def _times(
    vms: Sequence[VmProtection], of: Callable[[VmProtection], dt.datetime | None]
) -> Mapping[tuple[str, ...], float]:
    return {_key(vm): moment.timestamp() for vm in vms if (moment := of(vm)) is not None}
