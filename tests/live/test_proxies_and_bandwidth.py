"""A proxy for each side and a bandwidth, from the configuration to the lab's disks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.vrepl_runs import Runs, kinds, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

RATE = 8 * MIB


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Runs:
    disk = DiskSpec(16 * MIB, content="random", fill=0.75)
    return Runs(start_lab(LabSpec.of_vms(VmSpec("web-01", disks=(disk,)), job_vms=["web-01"])), tmp_path)


def configure(runs: Runs, old: str, new: str) -> None:
    config = runs.lab.config_file
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


def test_each_side_is_reached_as_its_own_proxy_can(runs: Runs) -> None:
    """Only the source's proxy is a VM that takes HotAdd: neither mover could have done the other's part."""
    configure(runs, 'proxy = "bare"', 'proxy = { source = "hotadd", target = "bare" }')
    first = runs.replicate()
    (transport,) = [disk["transport"] for disk in first["disks"]]
    assert {side: transport[side]["mode"] for side in ("source", "target")} == {"source": "hotadd", "target": "nbdssl"}
    assert runs.restore_point(first["restore_point"]) == runs.source()
    runs.write(5)
    second = runs.replicate()
    assert kinds(second) == ["incremental"]
    assert moved(second) == 65536
    assert runs.restore_point(second["restore_point"]) == runs.source()


@pytest.mark.parametrize("where", ["[jobs.demo]", "[sites.prod]", "[sites.dr]"])
def test_a_bandwidth_of_the_job_or_of_a_site_slows_the_transfer(runs: Runs, where: str) -> None:
    """No transfer can be faster than its limit, but for what a token bucket lets pass at once."""
    configure(runs, where, f'{where}\nbandwidth = "{RATE // MIB} MiB/s"')
    (disk,) = runs.replicate()["disks"]
    burst = 3 * MIB
    assert disk["seconds"] >= (disk["bytes_moved"] - burst) / RATE
