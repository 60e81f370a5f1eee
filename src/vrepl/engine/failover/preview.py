"""What `failover start` would do, looked at and not done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from vrepl.engine.failover.command import SIDE_BY_SIDE, Failovers
from vrepl.engine.failover.look import look
from vrepl.engine.failover.replicas import FoundReplica
from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotReadyError
from vrepl.model.failover import FailoverRecord, Start
from vrepl.model.plans import FailoverPlan
from vrepl.planner.conflicts import FailoverConflict
from vrepl.planner.failover import Done, SeenReplica, advance
from vrepl.report.failover_preview import FailoverPreview, FailoverPreviewReport, PreviewedPlan
from vrepl.report.model import ErrorReport


def preview(
    failovers: Failovers, replicas: Sequence[FoundReplica], wish_for: Callable[[FoundReplica], Start]
) -> FailoverPreviewReport:
    """Changes nothing; never raises for one VM's sake."""
    with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="preview") as pool:
        return FailoverPreviewReport(list(pool.map(lambda one: _preview(failovers, one, wish_for(one)), replicas)))


def preview_plan(
    failovers: Failovers,
    plan: FailoverPlan,
    replicas: Mapping[str, FoundReplica],
    wish_for: Callable[[FoundReplica], Start],
    *,
    from_replicas: bool,
) -> FailoverPreviewReport:
    """One row for each VM of the plan (naming VMs, not patterns), in its order, whether it has a replica or not."""
    mine = {name: replicas[name] for name in plan.names if name in replicas}
    rows = dict(zip(mine, preview(failovers, list(mine.values()), wish_for).vms, strict=True))

    def lost(name: str) -> FailoverPreview:
        hint = f"replicate it, or take it out of plan {plan.name}"
        return FailoverPreview(name, "", error=ErrorReport("it has no replica here", hint))

    vms = [rows.get(name) or lost(name) for name in plan.names]
    return FailoverPreviewReport(vms, PreviewedPlan(plan, from_replicas))


def _preview(failovers: Failovers, replica: FoundReplica, wish: Start) -> FailoverPreview:
    work = VmWork(failovers.context.services, replica.source_name)
    shown = FailoverPreview(replica.source_name, replica.vm.name)

    def look_on() -> None:
        record = failovers.states.read(replica.vm) or replica.never_failed_over
        settings = failovers.settings_of(replica, work)
        wanted = failovers.asked_for(replica, wish, record, settings)
        seen = look(failovers.context.target, replica.vm.ref, source_runs=failovers.source_runs(record))
        shown.state, shown.restore_point = str(record.state), record.restore_point
        answer = advance(record, seen, wanted)
        if isinstance(answer, FailoverConflict):
            raise NotReadyError(answer.message, hint=answer.hint or None)
        if isinstance(answer, Done):
            shown.notes = [answer.message]
            return
        after = answer.save or record
        shown.restore_point = after.restore_point
        shown.networks = _moves(seen, after)
        addresses = failovers.readdressing(replica, work, settings)
        addresses.preview(seen.vm)
        shown.addresses = addresses.report

    shown.error = work.outcome(look_on).error
    shown.notes = [*shown.notes, *work.notes]
    return shown


def _moves(seen: SeenReplica, after: FailoverRecord) -> list[str]:
    networks = after.networks
    return [
        f"{one.label}: {one.network} -> {networks[one.network]}"
        for one in seen.vm.hardware.network_adapters
        if networks.get(one.network, one.network) != one.network
    ]
