"""Two datacenters of a site have a datastore of the same name: the road and the room are those of the right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.vrepl_runs import GRAIN, Runs, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

THICK = DiskSpec(6 * MIB, content="random", fill=0.5, thin=False)


@pytest.fixture(scope="module")
def lab(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    """The other datacenter's `SITE-vmfs-01` is on NFS, with 1 GiB, and mounted by that one's host alone."""
    spec = LabSpec.of_vms(VmSpec("web-01", disks=(THICK,)), job_vms=["web-01"])
    return start_shared_lab(replace(spec, prod=replace(spec.prod, twin=True), dr=replace(spec.dr, twin=True)))


@pytest.fixture
def runs(lab: Lab, tmp_path: Path) -> Runs:
    return Runs(lab, tmp_path)


def without_target_host(runs: Runs) -> None:
    lines = runs.lab.config_file.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("target_host")]
    runs.lab.config_file.write_text("\n".join(kept) + "\n")


def test_room_is_that_of_the_datastore_where_the_replica_goes(runs: Runs) -> None:
    runs.lab.set("dr.datastore_free_mib=dr-vmfs-01:5")
    try:
        refused = runs.json("replicate", "demo", code=1)["vms"][0]["error"]
    finally:
        runs.lab.set("dr.datastore_free_mib=none")
    assert "dr-vmfs-01 has 5 MiB free" in refused, "though the other one of that name has 1 GiB"


@pytest.mark.slow
def test_a_name_that_two_datastores_have_wants_its_datacenter_and_then_the_mode_is_that_one_s(runs: Runs) -> None:
    host = runs.lab.sites["dr"].hosts[0]
    try:
        without_target_host(runs)
        refused = runs.cli("plan", "demo")
        assert refused.returncode == 2
        assert "site dr has 2 datastores named dr-vmfs-01: dr-dc-2/dr-vmfs-01, dr-dc/dr-vmfs-01" in refused.stderr
        assert "write the datacenter before the name" in refused.stderr
        runs.set_in_job(f'target_host = "{host}"', 'target_datastore = "dr-dc-2/dr-vmfs-01"')
        refused = runs.cli("plan", "demo")
        assert refused.returncode != 0
        assert f"host {host} has no datastore dr-dc-2/dr-vmfs-01" in refused.stderr + refused.stdout
        without_target_host(runs)
        runs.set_in_job('target_datastore = "dr-dc/dr-vmfs-01"', 'proxy = "san"')
        report = runs.replicate()
        [disk] = report["disks"]
        assert [disk["transport"][side]["mode"] for side in ("source", "target")] == ["san", "san"], "no NFS"
        assert runs.restore_point(report["restore_point"]) == runs.source()
        runs.write(3)
        report = runs.replicate()
        assert moved(report) == GRAIN
        assert report["disks"][0]["transport"]["source"]["mode"] == "san"
        assert runs.restore_point(report["restore_point"]) == runs.source()
        assert runs.json("verify", "web-01")["vms"][0]["result"] == "success"
    finally:
        runs.set_in_job(f'target_host = "{host}"', 'target_datastore = "dr-vmfs-01"', 'proxy = "bare"')
