"""How long until the last of 100 replicas is powered on, against what the limit of power-ons per host allows.

On the in-memory world, whose calls take what vCenter's may (guesses: a power-on three seconds, a revert and a snapshot
one each, a file beside the replica 40 ms, anything else 20): all of that is vrepl's to hide behind power-ons. The bound
is what no order can beat: on the fullest host its VMs over its limit, times three seconds. Once all side by side, and
once by a failover plan of four groups without gates, whose bound is the sum of its groups'. A plan touches no VM before
its group's turn, so what comes before a power-on is paid once a group.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.support.many_replicas import make_replicas
from tests.support.plan_world import Machine
from tests.support.world import World
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.plan_failover import PlanFailover
from vrepl.engine.failover.replicas import by_name
from vrepl.model.failover import Start
from vrepl.model.plans import POWER_ONS_PER_HOST, FailoverPlan, PlanGroup, PlannedVm
from vrepl.report.failover import FailoverReport
from vrepl.report.model import Result

VMS = 100
GROUPS = (4, 36, 50, 10)
SECONDS = {"power_on": 3.0, "revert_to_snapshot": 1.0, "create_snapshot": 1.0}
FILE_SECONDS, CALL_SECONDS = 0.04, 0.02


def run() -> dict[str, object]:
    side_by_side = failed_over(lambda failovers: failovers.run(failovers.find(), lambda _: Start()), [VMS])
    by_plan = failed_over(walked, GROUPS)
    return {
        "vms": VMS,
        "power_ons_per_host": POWER_ONS_PER_HOST,
        **{f"side_by_side_{key}": value for key, value in side_by_side.items()},
        **{f"by_plan_{key}": value for key, value in by_plan.items()},
    }


def walked(failovers: Failovers) -> FailoverReport:
    """By a plan of groups of these sizes."""
    replicas = by_name(failovers.find())
    names = iter(replicas)
    groups = tuple(PlanGroup(str(size), tuple(PlannedVm(next(names)) for _ in range(size))) for size in GROUPS)
    return PlanFailover(failovers, FailoverPlan("site", groups), replicas, Machine(), Machine()).run()


def failed_over(start: Callable[[Failovers], FailoverReport], sizes: Sequence[int]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="vrepl-failover-") as folder:
        world = World(Path(folder))
        make_replicas(world, VMS)
        hosts = [vm.host for vm in world.target.vms.values()]
        watch = Slow(world)
        engine = world.engine()
        began = time.monotonic()
        report = start(Failovers(FailoverContext(engine.services, world.target), engine.services.repository))
    if any(vm.result is not Result.SUCCESS for vm in report.vms):
        raise RuntimeError("not all were failed over")
    bound, at = 0.0, 0
    for size in sizes:
        bound += bound_of(hosts[at : at + size])
        at += size
    took = watch.last_power_on - began
    return {"seconds": round(took, 2), "bound": bound, "ratio": round(took / bound, 3), "peak_per_host": watch.peak}


def bound_of(hosts: Iterable[str]) -> float:
    return math.ceil(max(Counter(hosts).values()) / POWER_ONS_PER_HOST) * SECONDS["power_on"]


class Slow:
    """Makes a world's target take its time, and knows when the last power-on had ended."""

    def __init__(self, world: World) -> None:
        self.last_power_on = 0.0
        self.peak = 0
        self._now: Counter[str] = Counter()
        self._lock = threading.Lock()
        site, before = world.target, world.target.before_call

        def call(method: str) -> None:
            before(method)
            file = method in {"read_vm_file", "write_vm_file"}
            time.sleep(FILE_SECONDS if file else 0.0 if method == "power_on" else SECONDS.get(method, CALL_SECONDS))

        real: Any = site.power_on

        def power_on(vm_ref: str) -> None:
            host = site.vms[vm_ref].host
            with self._lock:
                self._now[host] += 1
                self.peak = max(self.peak, *self._now.values())
            time.sleep(SECONDS["power_on"])
            real(vm_ref)
            with self._lock:
                self._now[host] -= 1
                self.last_power_on = time.monotonic()

        site.before_call = call
        site.power_on = power_on  # type: ignore[method-assign]
