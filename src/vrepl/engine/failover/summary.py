"""What people see of a replica's state in vSphere's own client. vrepl itself never reads it: the records count."""

from __future__ import annotations

from vrepl.engine.vm_work import VmWork
from vrepl.errors import VreplError
from vrepl.model import ReplicaState
from vrepl.model.failover import FailoverRecord
from vrepl.ports.failover import StateDisplay


def summary_of(record: FailoverRecord) -> str:
    """Such as `failed-over to 20261124T181400Z-778929, until 2026-11-24 19:14 UTC, epoch 3`."""
    said = str(record.state)
    if record.state is ReplicaState.FAILING_BACK and record.failback is not None:
        said += f" ({record.failback.phase})"
    if record.restore_point is not None and record.state is not ReplicaState.READY:
        said += f" to {record.restore_point}" if record.failback is None else f" from {record.restore_point}"
    if record.deadline is not None and record.state is ReplicaState.FAILED_OVER:
        said += f", until {record.deadline:%Y-%m-%d %H:%M} UTC"
    return f"{said}, epoch {record.epoch}"


def show_state(site: StateDisplay, vm_ref: str, record: FailoverRecord, work: VmWork) -> None:
    """Never fails what was done: where the site does not take it, that is noted. Nothing for one never failed over."""
    if record.epoch == 0:
        return
    try:
        site.show_state(vm_ref, summary_of(record))
    except VreplError as error:
        work.note(f"its state cannot be shown in vCenter's attribute: {error.message}")
