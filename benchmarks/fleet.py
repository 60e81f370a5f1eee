"""A run over an estate in which nothing changed, on the lab, whose tasks take a second each; no setting touched.

What operators wait for, every few minutes. Two bounds stand beside the time. That of the limits: a source snapshot
keeps one of its datastore's places (`snapshots_per_datastore`) for as long as the tasks that make and remove it take,
so the fullest datastore takes its VMs times both over its places, and the last VM its further tasks. That of the
processors: what this machine spent for vrepl (one interpreter: one processor) and for the lab, over its processors.

`VREPL_BENCH_VMS` (1000) says how many VMs there are, `VREPL_BENCH_STORES` (4) over how many datastores they are spread.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.bench import cpu_seconds, peak_mib
from vrepl.model import TransferLimits
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DatastoreSpec, DiskSpec, LabSpec, VmSpec

VMS = int(os.environ.get("VREPL_BENCH_VMS", "1000"))
STORES = int(os.environ.get("VREPL_BENCH_STORES", "4"))
TASK_MS = 1000
SITES = ("prod", "dr")
LOOK = 0.1
"""Seconds between looks at the running command."""


def run() -> dict[str, object]:
    """The figures of the second run; `ratio_limits` is to be at most 1.15."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="vrepl-fleet-", dir=place) as folder:
        lab = Lab.start(Path(folder) / "lab", fleet(VMS, STORES), say=lambda line: None)
        try:
            first = replicate(lab)
            lab.set(f"task_ms={TASK_MS}")
            unchanged = replicate(lab)
        finally:
            lab.stop()
    return {"vms": VMS, "datastores": STORES, "task_ms": TASK_MS, "first_run_s": first.seconds, **figures(unchanged)}


def fleet(vms: int, stores: int) -> LabSpec:
    """So many VMs of one empty disk of 1 MiB each, dealt out to so many datastores."""
    named = [DatastoreSpec(f"vmfs-{number:02}") for number in range(1, stores + 1)]
    made = [
        VmSpec(
            f"vm-{number:04}",
            disks=(DiskSpec(MIB, content="empty"),),
            host=number % 2,
            datastore=named[number % stores].name,
            memory_mib=64,
        )
        for number in range(vms)
    ]
    spec = LabSpec.of_vms(*made, job_vms=[vm.name for vm in made])
    return replace(spec, prod=replace(spec.prod, datastores=named), dr=replace(spec.dr, datastores=named))


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    """By the clock, from the command's start to its end."""
    control_cpu: float
    """Processor seconds of the control process, as last seen."""
    cpu: float
    """The same with its data movers."""
    lab_cpu: float
    peak_mib: float
    """Memory of the control process."""
    movers: int
    """Data movers that were seen."""
    calls: Counter[str]
    """Of both sites, by method."""


def replicate(lab: Lab) -> Run:
    """One run of the job, as a command. Raises RuntimeError unless every VM succeeds."""
    for site in SITES:
        lab.reset_soap_calls(site)
    lab_before, began = lab_cpu(lab), time.perf_counter()
    command = [sys.executable, "-c", "from vrepl.cli import main; main()", "--config", str(lab.config_file)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    control, peak, movers = 0.0, 0.0, set[int]()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        process = subprocess.Popen([*command, "replicate", "demo", "--json"], stdout=out, stderr=said)
        try:
            while process.poll() is None:
                with suppress(OSError, IndexError):
                    control, peak = cpu_seconds(process.pid), peak_mib(process.pid)
                    movers.update(children(process.pid))
                time.sleep(LOOK)
        finally:
            process.kill()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = time.perf_counter() - began
        out.seek(0), said.seek(0)
        if process.returncode:
            raise RuntimeError(f"the run ended with {process.returncode}: {said.read()[-2000:].decode()}")
        report: dict[str, Any] = json.loads(out.read())
    assert all(vm["result"] == "success" for vm in report["vms"])
    calls: Counter[str] = Counter()
    for site in SITES:
        calls.update(lab.soap_calls(site)["by_method"])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(round(seconds, 2), control, cpu, lab_cpu(lab) - lab_before, peak, len(movers), calls)


def children(pid: int) -> set[int]:
    """Of every thread of a process."""
    return {int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()}


def lab_cpu(lab: Lab) -> float:
    """Processor seconds of the lab's vCenters so far."""
    return sum(cpu_seconds(lab.sites[site].process.pid) for site in SITES)


def figures(run: Run) -> dict[str, object]:
    limits = bound_by_limits(run.calls)
    processors = max(run.control_cpu, (run.cpu + run.lab_cpu) / (os.cpu_count() or 1))
    return {
        "seconds": run.seconds,
        "bound_limits_s": round(limits, 1),
        "ratio_limits": round(run.seconds / limits, 3),
        "bound_processors_s": round(processors, 1),
        "ratio_of_both": round(run.seconds / max(limits, processors), 3),
        "calls_per_vm": round(sum(run.calls.values()) / VMS, 2),
        "cpu_ms_per_vm": round(1000 * run.control_cpu / VMS, 1),
        "cpu_ms_per_vm_of_movers": round(1000 * (run.cpu - run.control_cpu) / VMS, 1),
        "movers": run.movers,
        "lab_cpu_ms_per_vm": round(1000 * run.lab_cpu / VMS, 1),
        "peak_mib": round(run.peak_mib, 1),
        "calls": {method: round(count / VMS, 2) for method, count in run.calls.most_common() if count >= VMS / 2},
    }


def bound_by_limits(calls: Counter[str]) -> float:
    """Seconds that no order beats: the fullest datastore's snapshots over its places, and the last VM's other tasks."""
    task = TASK_MS / 1000
    fullest = -(-VMS // STORES)
    rounds = -(-fullest // TransferLimits().snapshots_per_datastore)
    tasks_of_a_vm = sum(count for method, count in calls.items() if method.endswith("_Task")) / VMS
    return (rounds * 2 + max(tasks_of_a_vm - 2, 0)) * task


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
