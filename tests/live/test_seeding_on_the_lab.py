"""Seeding on the lab: a VM that is at the target already becomes the replica."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import GRAIN, Runs, kinds, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, SiteSpec, VmSpec, proxy_vm

DISKS = (DiskSpec(8 * MIB, content="random", fill=0.8), DiskSpec(MIB + 512, content="random"))
SPEC = LabSpec(
    prod=SiteSpec(vms=(VmSpec("web-01", disks=DISKS), proxy_vm())),
    dr=SiteSpec(
        vms=(
            VmSpec("restored", disks=DISKS, power="poweredOff", tools="notRunning", cpus=2, datastore="vmfs-02"),
            VmSpec("smaller", disks=DISKS[:1], power="poweredOff", tools="notRunning"),
            proxy_vm(),
        )
    ),
    job_vms=["web-01"],
)


def fill_as_the_source(runs: Runs) -> None:
    """A backup of this very moment, brought to the target by somebody else."""
    for index in (0, 1):
        out = runs.lab.export("prod", "web-01", index, runs.lab.folder / "backup.img")
        content = out.read_bytes()
        for at in range(0, len(content), MIB):
            runs.lab.write("dr", "restored", index, at, content[at : at + MIB])
        out.unlink()


def test_a_mapped_vm_gets_what_differs_and_is_then_incremental(
    start_lab: Callable[[LabSpec], Lab], tmp_path: Path
) -> None:
    runs = Runs(start_lab(SPEC), tmp_path)
    fill_as_the_source(runs)
    runs.write(3)
    runs.lab.unmap("prod", "web-01", 0, 40 * GRAIN, GRAIN)
    runs.lab.write_random("dr", "restored", 0, 60 * GRAIN, GRAIN, "written at the target")
    runs.lab.write_random("dr", "restored", 1, 16 * GRAIN, 512, "the last sector")
    option = ("--map", "web-01=restored")
    [planned] = runs.json("plan", "demo", *option)["vms"]
    assert (planned["replica"], kinds(planned)) == ("restored", ["compare", "compare"])
    report = runs.replicate(*option)
    assert kinds(report) == ["compare", "compare"]
    changed = 3 * GRAIN + 512
    assert changed <= moved(report) <= 1.1 * changed
    for index in (0, 1):
        assert runs.restore_point(report["restore_point"], index, "restored") == runs.source(index)
    runs.write(5)
    report = runs.replicate()
    assert (kinds(report), moved(report)) == (["incremental", "incremental"], GRAIN)
    assert runs.restore_point(report["restore_point"], 0, "restored") == runs.source(0)
    with plain_api.session(runs.lab, "dr") as api:
        replica = vm_named(api, "restored")
        assert replica.config.changeTrackingEnabled
        assert replica.config.hardware.numCPU == 1
        marks = {one.key: one.value for one in replica.config.extraConfig if one.key.startswith("vrepl.")}
        assert marks["vrepl.source.site"] == "prod"
        wait(replica.Rename_Task("still-the-replica"))
    runs.write(6)
    assert moved(runs.replicate(*("--map", "web-01=still-the-replica"))) == GRAIN


def test_a_vm_that_does_not_match_is_refused(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    runs = Runs(start_lab(SPEC), tmp_path)
    refused = runs.replicate("--map", "web-01=smaller", code=1)
    assert "do not match" in refused["error"]
    assert refused["hint"]
    assert runs.cli("replicate", "demo", "--map", "web-01=nobody").returncode == 10
    assert runs.cli("replicate", "demo", "--map", "nobody=restored").returncode == 10
    assert runs.cli("replicate", "demo", "--map", "web-01").returncode == 2
    with plain_api.session(runs.lab, "dr") as api:
        assert vm_named(api, "smaller").snapshot is None
        assert not [one for one in vm_named(api, "smaller").config.extraConfig if one.key.startswith("vrepl.")]
