"""Names that vSphere escapes: the lab holds them as vSphere does, people and vrepl write them plainly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.vrepl_runs import Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

NAME = "web/01 50%"


def test_a_vm_whose_name_holds_what_vsphere_escapes(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    vm = VmSpec(NAME, disks=(DiskSpec(2 * MIB, content="random"),))
    runs = Runs(start_lab(LabSpec.of_vms(vm, job_vms=[NAME])), tmp_path)
    report = runs.replicate()
    with plain_api.session(runs.lab, "dr") as instance:
        assert plain_api.vm_named(instance, "web%2f01 50%25-replica").config.name == "web%2f01 50%25-replica"
        with pytest.raises(vim.fault.DuplicateName):
            plain_api.wait(plain_api.vm_named(instance, "vrepl-proxy").Rename_Task("web%2f01 50%25-replica"))
    runs.lab.set(f"prod.fault=read:error:connection_lost@1,vm={NAME}")
    runs.lab.write("prod", NAME, 0, 0, b"x" * 512)
    second = runs.replicate()
    assert second["disks"][0]["attempts"] == 2
    source = runs.lab.export("prod", NAME, 0, tmp_path / "source.img").read_bytes()
    replica = runs.lab.export("dr", f"{NAME}-replica", 0, tmp_path / "replica.img").read_bytes()
    assert source[:512] == b"x" * 512
    assert replica == source
    assert report["restore_point"] != second["restore_point"]
