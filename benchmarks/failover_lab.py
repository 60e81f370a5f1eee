"""How long `vrepl failover start --all` takes from its start to the last power-on of 100 replicas, on the lab.

As `benchmarks/failover.py`, but the whole command against a simulated vCenter: start of the process, login, inventory,
the state beside each replica by HTTPS, tasks that are waited for. Four hosts; a power-on takes three seconds, a revert
and a snapshot one each (guesses). The bound is what no order can beat: on the fullest host its VMs over its limit,
times three seconds. The source site is lost. Control process and simulator share this machine's processors.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.support import plain_api
from vrepl.model.plans import POWER_ONS_PER_HOST
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

VMS = 100
HOSTS = 4
TASK_MS, POWER_ON_MS = 1000, 2000
POWER_ON_SECONDS = (TASK_MS + POWER_ON_MS) / 1000
VREPL = [sys.executable, "-c", "from vrepl.cli import main; main()"]


def run() -> dict[str, object]:
    with lab_of(VMS) as lab:
        spread_replicas(lab.config_file)
        vrepl(lab, "replicate", "demo")
        lab.set("dr.guest=*,boot_ms=0", f"dr.task_ms={TASK_MS}", f"dr.power_on_ms={POWER_ON_MS}")
        lab.stop_site("prod")
        lab.reset_soap_calls("dr")
        began = time.time()
        report, processor = vrepl(lab, "failover", "start", "--all", "--yes")
        ended = time.time()
        calls = lab.soap_calls("dr")["total"]
        hosts, last = replicas(lab)
        peak = lab.status()["dr"].get("power_ons")
    assert [vm["state"] for vm in report["vms"]] == ["failed-over"] * VMS
    bound = math.ceil(max(Counter(hosts).values()) / POWER_ONS_PER_HOST) * POWER_ON_SECONDS
    return {
        "vms": VMS,
        "hosts": HOSTS,
        "power_ons_per_host": POWER_ONS_PER_HOST,
        "peak_per_host": peak,
        "seconds": round(last - began, 2),
        "seconds_command": round(ended - began, 2),
        "bound": bound,
        "ratio": round((last - began) / bound, 3),
        "calls_per_vm": round(calls / VMS, 1),
        "processor_ms_per_vm": round(1000 * processor / VMS),
    }


@contextmanager
def lab_of(count: int) -> Iterator[Lab]:
    """VMs of 1 MiB, on a file system in memory where there is one."""
    names = [f"vm-{number:03}" for number in range(count)]
    disks = (DiskSpec(MIB, content="random", fill=0.3),)
    spec = LabSpec.of_vms(*(VmSpec(name, disks=disks, host=n % 2) for n, name in enumerate(names)), job_vms=names)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="vrepl-failover-", dir=place) as folder:
        lab = Lab.start(Path(folder) / "lab", replace(spec, dr=replace(spec.dr, hosts=HOSTS)), say=lambda line: None)
        try:
            yield lab
        finally:
            lab.stop()


def spread_replicas(config: Path) -> None:
    """Over all hosts: what a job does that names none."""
    config.write_text("".join(one for one in config.read_text().splitlines(True) if not one.startswith("target_host")))


def vrepl(lab: Lab, *words: str) -> tuple[Any, float]:
    """What it printed, and the seconds of processor time that it took."""
    before = os.times()
    done = subprocess.run(
        [*VREPL, "--config", str(lab.config_file), *words, "--json"], capture_output=True, text=True, check=False
    )
    after = os.times()
    if done.returncode:
        raise RuntimeError(f"vrepl {words[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout), used


def replicas(lab: Lab) -> tuple[list[str], float]:
    """The host of each, and when the last of them was on."""
    with plain_api.session(lab, "dr") as instance:
        content = instance.content
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        mine = [vm for vm in view.view if vm.name.endswith("-replica")]
        hosts = [vm.runtime.host.name for vm in mine]
        last = max(vm.summary.runtime.bootTime.timestamp() for vm in mine)
    return hosts, last
