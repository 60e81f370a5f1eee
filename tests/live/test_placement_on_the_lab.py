"""Where a job's replicas go: datastore by disk, a folder that is made, adapters that stay disconnected, a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named
from tests.support.vrepl_runs import Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

pytestmark = pytest.mark.slow

SPEC = LabSpec.of_vms(
    VmSpec(
        "web-01",
        disks=(DiskSpec(MIB, content="random"), DiskSpec(2 * MIB, content="random")),
        networks=("VM Network", "isolated"),
    ),
    job_vms=["web-01"],
)


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Runs:
    return Runs(start_lab(SPEC), tmp_path)


@pytest.fixture
def dr(runs: Runs) -> Iterator[Any]:
    with plain_api.session(runs.lab, "dr") as instance:
        yield instance


def devices(vm: Any, kind: type) -> list[Any]:
    return [one for one in vm.config.hardware.device if isinstance(one, kind)]


def drop_host(runs: Runs) -> None:
    lines = runs.lab.config_file.read_text().splitlines()
    runs.lab.config_file.write_text("\n".join(line for line in lines if not line.startswith("target_host")) + "\n")


def test_a_replica_is_where_the_job_says(runs: Runs, dr: Any) -> None:
    drop_host(runs)
    [compute] = {one.parent.name for one in vm_named(dr, "vrepl-proxy").runtime.host.parent.host}
    runs.set_in_job(
        'target_datastore = "dr-dc/dr-vmfs-01"',  # nasty labs have another one in another datacenter
        'disk_datastores = { "prod-vmfs-*" = "dr-dc/dr-vmfs-02" }',
        'target_folder = "Replicas/Web servers"',
        f'target_cluster = "{compute}"',
        'networks = { "isolated" = "disconnected" }',
    )
    plan = runs.plan()
    assert [note for note in plan["notes"] if "goes to datastore dr-vmfs-02" in note]
    assert [note for note in plan["notes"] if "folder Replicas/Web servers is made" in note]
    report = runs.replicate()
    replica = vm_named(dr, "web-01-replica")
    assert replica.parent.name == "Web servers"
    assert replica.parent.parent.name == "Replicas"
    assert replica.config.files.vmPathName.startswith("[dr-vmfs-01]")
    files = [one.backing.fileName for one in devices(replica, vim.vm.device.VirtualDisk)]
    assert all(name.startswith("[dr-vmfs-02]") for name in files), files
    first, second = devices(replica, vim.vm.device.VirtualEthernetCard)
    assert (first.connectable.startConnected, second.connectable.startConnected) == (True, False)
    for index in (0, 1):
        assert runs.restore_point(report["restore_point"], index) == runs.source(index)
    runs.write(3, index=1)
    report = runs.replicate()
    assert not [note for note in report["notes"] if "network adapter" in note or "folder" in note]
    assert runs.restore_point(report["restore_point"], 1) == runs.source(1)


def test_what_is_not_there_is_refused_before_anything_is_made(runs: Runs, dr: Any) -> None:
    before = runs.lab.config_file.read_text()
    for line, said in (
        ('disk_datastores = { "*" = "dr-vmfs-09" }', "has no datastore dr-vmfs-09"),
        ('target_cluster = "nowhere"', "no cluster nowhere"),
        ('target_folder = "Replicas//Web"', "is a path of folder names"),
    ):
        runs.set_in_job(line)
        for command in ("plan", "replicate"):
            done = runs.cli(command, "demo")
            assert done.returncode == 2, done.stderr
            assert said in (done.stdout + done.stderr).replace("\n", " ")
        runs.lab.config_file.write_text(before)
    assert not [one for one in runs.json("vms", "dr")["vms"] if one["name"] == "web-01-replica"]
