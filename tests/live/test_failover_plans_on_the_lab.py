"""Failover plans on the lab: in order with everything else gone, stopped and gone on with, killed and gone on with."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api
from tests.support.target_alone import forget_all_but_the_target
from tests.support.vrepl_runs import VREPL, Image, Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

NAMES = ("dns-01", "db-01", "web-01", "web-02")
PLAN = """
[plans.site]
gates = "heartbeat"
gate_timeout = "30s"

[[plans.site.groups]]
name = "base"
vms = ["dns-01"]

[[plans.site.groups]]
name = "data"
vms = [{ name = "db-01", gates = ["heartbeat", "port:5432", "script:test -e {ready}"] }]

[[plans.site.groups]]
name = "web"
vms = ["web-*"]
"""


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Runs:
    vms = [VmSpec(name, disks=(DiskSpec(2 * MIB, content="random"),)) for name in NAMES]
    lab = start_lab(LabSpec.of_vms(*vms, job_vms=NAMES))
    lab.set("dr.guest=*,boot_ms=700,ports=5432", "dr.isolated_reachable=yes")
    lab.config_file.write_text(lab.config_file.read_text() + PLAN.replace("{ready}", str(ready(lab))))
    ready(lab).touch()
    made = Runs(lab, tmp_path)
    made.json("replicate", "demo")
    return made


def ready(lab: Lab) -> Path:
    """As long as this file is there, db-01 serves: what a guest of the lab answers is settled when it boots."""
    return lab.folder / "db-01-is-ready"


def powered_on(lab: Lab) -> dict[str, Any]:
    """When, by vSphere, each replica that runs was powered on."""
    with plain_api.session(lab, "dr") as instance:
        found = {name: plain_api.vm_named(instance, f"{name}-replica").runtime for name in NAMES}
        return {name: one.bootTime for name, one in found.items() if one.powerState == "poweredOn"}


def in_order(times: dict[str, Any]) -> bool:
    found: bool = times["dns-01"] < times["db-01"] < min(times["web-01"], times["web-02"])
    return found


def in_data_group(runs: Runs) -> bool:
    return "db-01" in powered_on(runs.lab)


@pytest.mark.slow
def test_with_all_else_gone_every_vm_comes_up_in_the_order_of_the_plan_that_lies_at_the_replicas(
    runs: Runs, tmp_path: Path
) -> None:
    exports = {name: runs._export("prod", name, 0, None) for name in NAMES}
    moment = dt.datetime.now(dt.UTC).isoformat()
    for name in NAMES:
        runs.lab.write_random("prod", name, 0, 0, MIB, "encrypted by a stranger")
    runs.json("replicate", "demo")
    assert runs.lab.stop_site("prod")
    server = forget_all_but_the_target(runs.lab, tmp_path)

    def vrepl(*arguments: str) -> Any:
        done = subprocess.run(
            [*VREPL, "failover", *arguments, *server, "--json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    [preview] = vrepl("plan", "show")["plans"]
    assert preview["plan"]["kept"] == "beside the replicas"
    assert [[vm["name"] for vm in group["vms"]] for group in preview["plan"]["groups"]] == [
        ["dns-01"], ["db-01"], ["web-01", "web-02"],
    ]  # fmt: skip
    assert {vm["error"] for vm in preview["vms"]} == {None}
    report = vrepl("start", "--all", "--as-of", moment, "--yes")
    assert {vm["result"] for vm in report["vms"]} == {"success"}
    assert [group["name"] for group in report["plan"]["groups"]] == ["site/base", "site/data", "site/web"]
    times = powered_on(runs.lab)
    assert in_order(times)
    began = [group["began"] for group in report["plan"]["groups"]]
    there = [group["there"] for group in report["plan"]["groups"]]
    assert began[1] >= there[0] >= 0.7
    assert began[2] >= there[1]
    [note] = report["plan"]["notes"]
    assert "its commands are not run (test); --scripts runs them" in note
    for vm in report["vms"]:
        assert runs.restore_point(vm["restore_point"], vm=vm["replica"]) == exports[vm["name"]]


@pytest.mark.long
def test_a_gate_that_stays_shut_stops_it_and_it_is_gone_on_with_and_undone(runs: Runs) -> None:
    ready(runs.lab).unlink()
    config = runs.lab.config_file
    config.write_text(config.read_text().replace('gate_timeout = "30s"', 'gate_timeout = "2s"'))
    stopped = runs.json("failover", "start", "--plan", "site", "--source-is-down", "--yes", code=3)
    assert (stopped["plan"]["result"], stopped["plan"]["failed"]) == ("stopped", ["db-01"])
    results = {vm["name"]: (vm["result"], vm["state"]) for vm in stopped["vms"]}
    assert results == {
        "dns-01": ("success", "failed-over"), "db-01": ("failed", "failed-over"),
        "web-01": ("skipped", "ready"), "web-02": ("skipped", "ready"),
    }  # fmt: skip
    before = powered_on(runs.lab)
    assert set(before) == {"dns-01", "db-01"}
    shown = runs.cli("failover", "start", "--plan", "site", "--source-is-down", "--yes")
    assert "stopped by db-01; up: dns-01, db-01; not up: web-01, web-02" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines() if "|" in line)
    ready(runs.lab).touch()
    config.write_text(config.read_text().replace('gate_timeout = "2s"', 'gate_timeout = "30s"'))
    done = runs.json("failover", "start", "--plan", "site", "--source-is-down", "--yes")
    assert done["plan"]["result"] == "completed"
    after = powered_on(runs.lab)
    assert in_order(after)
    assert {name: after[name] for name in before} == before, "what ran was left alone"
    undone = runs.json("failover", "undo", "--plan", "site", "--yes")
    assert {vm["state"] for vm in undone["vms"]} == {"ready"}
    assert powered_on(runs.lab) == {}
    assert runs.json("replicate", "demo")["run"]["result"] == "success"


@pytest.mark.slow
def test_killed_in_the_middle_of_a_plan_the_same_command_ends_it_and_a_lone_start_is_warned_of(runs: Runs) -> None:
    command = ("failover", "start", "--plan", "site", "--source-is-down", "--yes")
    ready(runs.lab).unlink()
    runs.kill_when(lambda: in_data_group(runs), *command)
    before = powered_on(runs.lab)
    assert set(before) == {"dns-01", "db-01"}
    ready(runs.lab).touch()
    done = runs.json(*command)
    assert {vm["result"] for vm in done["vms"]} == {"success"}
    after = powered_on(runs.lab)
    assert in_order(after)
    assert {name: after[name] for name in before} == before
    runs.json("failover", "undo", "web-01", "--yes")
    alone = runs.cli("failover", "start", "web-01", "--source-is-down", "--yes")
    assert alone.returncode == 0
    warning = "web-01 belongs to failover plan site, which is not started"
    assert warning in alone.stderr
    assert warning in alone.stdout.replace("\n", " ")


@pytest.mark.long
def test_a_plan_is_tested_on_clones_in_its_order_and_nothing_is_left(runs: Runs) -> None:
    with plain_api.session(runs.lab, "dr") as instance:
        vms = {vm.name for vm in every_vm(instance)}
    done = runs.json("failover", "test", "--plan", "site", "--network", "VM Network")
    assert {(vm["result"], vm["state"]) for vm in done["vms"]} == {("success", "ready")}, done
    groups = done["plan"]["groups"]
    assert groups[1]["began"] >= groups[0]["there"]
    assert groups[2]["began"] >= groups[1]["there"]
    checks = {vm["name"]: [check["check"] for check in vm["test"]["checks"]] for vm in done["vms"]}
    assert checks["db-01"] == ["heartbeat", "port:5432", f"script:test -e {ready(runs.lab)}"]
    rows = runs.json("replicas")["replicas"]
    assert {row["last_test"]["passed"] for row in rows} == {True}
    with plain_api.session(runs.lab, "dr") as instance:
        assert {vm.name for vm in every_vm(instance)} == vms


@pytest.mark.long
def test_a_planned_failover_by_plan_shuts_down_in_reverse_and_loses_nothing(runs: Runs) -> None:
    runs.write(3)
    last: dict[str, Image] = {}
    done = runs.json("failover", "start", "--plan", "site", "--planned", "--yes")
    assert {(vm["result"], vm["state"]) for vm in done["vms"]} == {("success", "failed-over")}, done
    assert in_order(powered_on(runs.lab))
    for vm in done["vms"]:
        last[vm["name"]] = runs._export("prod", vm["name"], 0, None)
        assert runs.restore_point(vm["restore_point"], vm=vm["replica"]) == last[vm["name"]]
    with plain_api.session(runs.lab, "prod") as instance:
        states = {name: plain_api.vm_named(instance, name).runtime.powerState for name in NAMES}
        assert set(states.values()) == {"poweredOff"}


def every_vm(instance: Any) -> Iterator[Any]:
    from pyVmomi import vim

    view = instance.content.viewManager.CreateContainerView(instance.content.rootFolder, [vim.VirtualMachine], True)
    yield from view.view
    view.Destroy()
