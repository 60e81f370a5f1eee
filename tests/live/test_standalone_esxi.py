"""A standalone ESXi host as source, as target, and as both: the demo's job, two runs and every byte compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.small_lab import small_spec
from tests.support.vrepl_runs import Runs
from vrepl_lab.demo import show, what_to_prove
from vrepl_lab.lab import Lab
from vrepl_lab.spec import LabSpec, standalone

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "where", [pytest.param("prod", marks=pytest.mark.long), pytest.param("dr", marks=pytest.mark.long), "both"]
)
def test_the_demos_job(where: str, start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    spec = small_spec()
    lab = start_lab(standalone(spec, where))
    show(lab, *what_to_prove(spec), engine="vddk", proxy="bare")
    runs = Runs(lab, tmp_path)
    assert {vm["result"] for vm in runs.json("verify")["vms"]} == {"success"}
    if where != "dr":
        refused = runs.cli("vms", "prod", "--select", 'tags = ["Backup/Gold"]')
        assert refused.returncode != 0
        assert "tags" in refused.stderr
        assert "ESXi" in refused.stderr


def test_what_only_a_vcenter_has_is_refused_by_the_plan(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    runs = Runs(start_lab(standalone(small_spec(), "dr")), tmp_path)
    before = runs.lab.config_file.read_text()
    for line, said in (
        ('target_folder = "Replicas"', "a standalone ESXi host has no VM folders"),
        ('target_cluster = "dr-cluster"', "no cluster dr-cluster"),
    ):
        runs.set_in_job(line)
        for command in ("plan", "replicate"):
            done = runs.cli(command, "demo")
            assert done.returncode == 2, done.stderr
            assert said in done.stderr.replace("\n", " ")
        runs.lab.config_file.write_text(before)
    assert not [vm for vm in runs.json("vms", "dr")["vms"] if vm["name"].endswith("-replica")]
