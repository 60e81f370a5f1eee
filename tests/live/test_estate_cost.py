"""What an unchanged VM costs in calls, at both sites together: on the lab, counted by the lab itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.vrepl_runs import Runs
from vrepl_lab import nasty
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

FEW, MANY = 2, 10


def calls_of_an_unchanged_run(start_lab: Callable[[LabSpec], Lab], folder: Path, count: int) -> Counter[str]:
    """By method, of both sites, of the second run of a job of so many VMs with one empty disk each."""
    names = [f"vm-{number:02}" for number in range(count)]
    vms = [VmSpec(name, disks=(DiskSpec(MIB, content="empty"),)) for name in names]
    lab = start_lab(LabSpec.of_vms(*vms, job_vms=names))
    runs = Runs(lab, folder)
    runs.json("replicate", "demo")
    for site in ("prod", "dr"):
        lab.reset_soap_calls(site)
    report = runs.json("replicate", "demo")
    assert [vm["result"] for vm in report["vms"]] == ["success"] * count
    counted: Counter[str] = Counter()
    for site in ("prod", "dr"):
        counted.update(lab.soap_calls(site)["by_method"])
    return counted


@pytest.mark.slow
def test_an_unchanged_vm_costs_few_calls(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    few = calls_of_an_unchanged_run(start_lab, tmp_path / "few", FEW)
    many = calls_of_an_unchanged_run(start_lab, tmp_path / "many", MANY)
    per_vm = {method: (many[method] - few[method]) / (MANY - FEW) for method in many}
    assert sum(per_vm.values()) <= 16, per_vm
    # What holds for the whole run is read once, however many VMs there are; by the clock, names are listed once more.
    listing = 2 / (MANY - FEW)
    assert abs(per_vm["CreateContainerView"]) <= listing, per_vm
    assert per_vm["CreateSnapshot_Task"] == 2, per_vm
    # What must be fresh: either VM as the run begins with it, and each of the snapshots once it is there.
    assert 4 <= per_vm["RetrievePropertiesEx"] <= 4 + listing, per_vm
    # An unkind site begins an answer with an empty page, and tells of changes that were none.
    pages = 2 if nasty.wanted() else 1
    assert 2 <= per_vm["QueryChangedDiskAreas"] <= 2 * pages, per_vm
    # The replica is where it was seen last.
    assert many["FindAllByUuid"] == few["FindAllByUuid"], many
    # Of three tasks, each comes into the view once at the most, and brings two answers at the most.
    assert per_vm["ModifyListView"] <= 3, per_vm
    assert per_vm["WaitForUpdatesEx"] <= 6, per_vm
    # Nobody asks whether the session lives where nothing speaks against it.
    assert many["Fetch"] == 0, many
