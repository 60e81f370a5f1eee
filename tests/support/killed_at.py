"""One VM after the other is killed at another step of one command: at the first, at the second, until there is none.

Nobody lists the steps: they are what `vrepl` tells of itself, and it tells what its planner answers. Each death has a
VM of its own, so that what is irreversible can be tried as well, and a whole estate is made ready by one command.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.support import plain_api
from tests.support.vrepl_runs import GRAIN, Image, Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

DISKS = 2
TASK_MS = 150
"""What each task of both vCenters takes longer, so that a death a moment after a step began comes in its middle."""
A_MOMENT = 0.08


@dataclass(frozen=True)
class Looked:
    """Everything of one VM that a death may not harm."""

    points: dict[str, list[Image]]
    original: list[Image]
    replica: list[Image]


@dataclass
class Estate:
    """Many small VMs that are replicated, and the commands over them."""

    runs: Runs
    names: Sequence[str]
    later: float = 0.0
    """Seconds from a step's beginning to the death."""
    told: list[str] = field(default_factory=list)
    """Steps at which something was killed."""

    @classmethod
    def start(cls, start_lab: Callable[[LabSpec], Lab], folder: Path, count: int) -> Estate:
        names = [f"guest-{number:02}" for number in range(1, count + 1)]
        disks = (DiskSpec(2 * MIB, content="random", fill=0.2), DiskSpec(MIB, content="random", fill=0.1))
        vms = [VmSpec(name, disks=disks, host=number % 2) for number, name in enumerate(names)]
        runs = Runs(start_lab(LabSpec.of_vms(*vms, job_vms=names)), folder, names[0])
        runs.lab.set("guest=*,boot_ms=0")
        return cls(runs, names)

    def replicate(self) -> None:
        reports = self.runs.json("replicate", "demo")["vms"]
        assert {one["result"] for one in reports} == {"success"}

    def all(self, *words: str) -> None:
        """A command over every VM that is in it."""
        reports = self.runs.json(*words, "--all", "--yes")["vms"]
        assert {one["result"] for one in reports} == {"success"}, reports

    def one(self, vm: str, *words: str) -> Any:
        report = self.runs.json(*words, vm, *(() if "test" in words else ("--yes",)))
        [row] = report["vms"]
        return {**row, "reprotect": report.get("reprotect")}

    # -- dying --------------------------------------------------------------------------------------------------------

    def die_everywhere(
        self,
        words: tuple[str, ...],
        state: str,
        check: Callable[[str, Looked, Any], None],
        *,
        goes_on: bool = False,
    ) -> int:
        """How many deaths there were. `goes_on`: the guest at the target writes on where it still runs."""
        self.runs.lab.set(f"task_ms={TASK_MS if self.later else 0}")
        for number, vm in enumerate(self.names, 1):
            before = self.look(vm)
            steps = self.killed(vm, number, words)
            if goes_on and self._power("dr", f"{vm}-replica") == "poweredOn":
                self.runs.lab.write_random("dr", f"{vm}-replica", 0, 3 * GRAIN, GRAIN, f"{vm} goes on")
            died = len(steps) == number
            done = self.one(vm, *words)
            at = f"{vm} killed {self.later:g} s after: {' < '.join(reversed(steps))}"
            assert (done["result"], done["state"]) == ("success", state), f"{at}: {done}"
            try:
                check(vm, before, done)
            except AssertionError as error:
                error.add_note(at)
                raise
            if not died:
                return number - 1
            self.told.append(steps[-1])
        raise AssertionError(f"more VMs are wanted: the last one was killed at {self.told[-1]}")

    def killed(self, vm: str, number: int, words: tuple[str, ...]) -> list[str]:
        """The steps that a command told of, SIGKILLed at the one of this number, if it came there."""
        process = self.runs.start(*words, vm, *(() if "test" in words else ("--yes",)))
        assert process.stderr is not None
        assert process.stdout is not None
        output = threading.Thread(target=process.stdout.read, daemon=True)
        output.start()
        step = re.compile(rf"{re.escape(vm)}: (?!\d)(.+)$")
        steps: list[str] = []
        for line in process.stderr:
            if found := step.match(line.rstrip()):
                steps.append(found[1])
                if len(steps) == number:
                    time.sleep(self.later)
                    process.send_signal(signal.SIGKILL)
                    break
        process.wait()
        output.join()
        process.stderr.close()
        process.stdout.close()
        return steps

    # -- looking ------------------------------------------------------------------------------------------------------

    def look(self, vm: str) -> Looked:
        return Looked(self.points(vm), self.original(vm), self.replica(vm))

    def points(self, vm: str) -> dict[str, list[Image]]:
        with plain_api.session(self.runs.lab, "dr") as instance:
            names = [one.name for one in snapshots(plain_api.vm_named(instance, f"{vm}-replica"))]
        sealed = [name for name in names if re.match(r"vrepl \d{8}T", name)]
        return {name: self.images("dr", f"{vm}-replica", name) for name in sealed}

    def original(self, vm: str) -> list[Image]:
        """Nothing where it is gone."""
        return self.images("prod", vm) if vm in self.vm_names("prod") else []

    def replica(self, vm: str) -> list[Image]:
        return self.images("dr", f"{vm}-replica")

    def images(self, site: str, vm: str, snapshot: str | None = None) -> list[Image]:
        return [self.runs._export(site, vm, index, snapshot) for index in range(DISKS)]

    def power(self, vm: str) -> tuple[str, str]:
        """Of the original, of the replica."""
        return self._power("prod", vm), self._power("dr", f"{vm}-replica")

    def _power(self, site: str, name: str) -> str:
        with plain_api.session(self.runs.lab, site) as instance:
            return str(plain_api.vm_named(instance, name).runtime.powerState)

    def snapshot_names(self, site: str, vm: str) -> list[str]:
        with plain_api.session(self.runs.lab, site) as instance:
            return [one.name for one in snapshots(plain_api.vm_named(instance, vm))]

    def vm_names(self, site: str) -> set[str]:
        with plain_api.session(self.runs.lab, site) as instance:
            content = instance.content
            view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
            return {vm.name for vm in view.view}


def snapshots(vm: Any) -> list[Any]:
    """The whole tree."""

    def below(nodes: Any) -> list[Any]:
        return [one for node in nodes for one in (node, *below(node.childSnapshotList))]

    return below(vm.snapshot.rootSnapshotList) if vm.snapshot else []
