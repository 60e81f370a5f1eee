"""Home again, on the lab: the original equals the replica, whatever change tracking has lost, and it can be undone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api
from tests.support.vrepl_runs import GRAIN, Image, Runs, kinds, moved, until
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

StartRuns = Callable[[LabSpec], Lab]
REPLICA = "web-01-replica"


@pytest.fixture
def runs(start_lab: StartRuns, tmp_path: Path) -> Runs:
    vm = VmSpec("web-01", disks=(DiskSpec(8 * MIB, content="random", fill=0.5), DiskSpec(2 * MIB)))
    runs = Runs(start_lab(LabSpec.of_vms(vm, job_vms=["web-01"])), tmp_path)
    runs.replicate()
    return runs


def command(runs: Runs, *arguments: str, code: int = 0) -> Any:
    [vm] = runs.json(*arguments, "web-01", "--yes", code=code)["vms"]
    return vm


def at_target(runs: Runs, tmp_path: Path, index: int = 0) -> Image:
    return Image(runs.lab.export("dr", REPLICA, index, tmp_path / f"replica-{index}.img", None))


def power(runs: Runs) -> tuple[str, str]:
    states = []
    for site, name in (("prod", "web-01"), ("dr", REPLICA)):
        with plain_api.session(runs.lab, site) as instance:
            states.append(str(plain_api.vm_named(instance, name).runtime.powerState))
    return states[0], states[1]


@pytest.mark.slow
def test_after_a_loss_of_power_home_equals_the_replica_and_only_what_differs_crossed(
    runs: Runs, tmp_path: Path
) -> None:
    for grain in (3, 4):
        runs.write(grain, seed="lost with the site")
    runs.lab.lose_power("prod", "web-01")
    assert command(runs, "failover", "start")["state"] == "failed-over"
    for grain in (4, 9):
        runs.lab.write_random("dr", REPLICA, 0, grain * GRAIN, GRAIN, f"at the target {grain}")
    done = command(runs, "failback", "start")
    assert set(done) >= {"name", "replica", "result", "state", "restore_point", "seconds", "error"}
    assert done["state"] == "failing-back"
    assert power(runs) == ("poweredOn", "poweredOff")
    assert [runs.source(index) for index in (0, 1)] == [at_target(runs, tmp_path, index) for index in (0, 1)]
    assert done["bytes_moved"] == 3 * GRAIN
    assert runs.replicate(code=3)["restore_point"] is None, "until it is committed, runs keep away"
    committed = command(runs, "failback", "commit")
    assert committed["state"] == "ready"
    assert runs.json("failback", "commit", "--all", "--yes")["vms"] == [], "nothing is on its way any more"
    assert runs.restore_point(committed["restore_point"]) == at_target(runs, tmp_path)
    runs.write(11)
    baseline = runs.replicate()
    assert kinds(baseline) == ["compare", "compare"]
    assert runs.restore_point(baseline["restore_point"]) == runs.source()
    runs.write(12)
    following = runs.replicate()
    assert kinds(following) == ["incremental", "incremental"]
    assert moved(following) <= 1.1 * GRAIN
    assert runs.restore_point(following["restore_point"]) == runs.source()


@pytest.mark.slow
def test_after_a_planned_failover_what_changed_crosses_and_undo_makes_the_original_what_it_was(
    runs: Runs, tmp_path: Path
) -> None:
    runs.write(5)
    planned = runs.json("failover", "start", "web-01", "--planned", "--yes")["vms"][0]
    assert planned["state"] == "failed-over"
    before = runs.source()
    runs.lab.write_random("dr", REPLICA, 0, 7 * GRAIN, 2 * GRAIN, "at the target")
    ran = at_target(runs, tmp_path)
    done = command(runs, "failback", "start")
    assert done["bytes_moved"] <= 1.1 * 2 * GRAIN
    assert runs.source() == ran
    undone = command(runs, "failback", "undo")
    assert (undone["state"], power(runs)) == ("failed-over", ("poweredOff", "poweredOn"))
    assert (runs.source(), at_target(runs, tmp_path)) == (before, ran)
    again = command(runs, "failback", "start")
    assert again["state"] == "failing-back"
    assert runs.source() == ran


@pytest.mark.long
def test_where_the_original_is_gone_a_new_vm_takes_its_place_and_the_job_goes_on(runs: Runs, tmp_path: Path) -> None:
    runs.lab.lose_power("prod", "web-01")
    with plain_api.session(runs.lab, "prod") as instance:
        original = plain_api.vm_named(instance, "web-01")
        uuid, datastore = original.config.instanceUuid, original.datastore[0].name
        host = original.runtime.host.name
        plain_api.wait(original.Destroy_Task())
    assert command(runs, "failover", "start")["state"] == "failed-over"
    runs.lab.write_random("dr", REPLICA, 0, 9 * GRAIN, GRAIN, "at the target")
    assert "--new" in command(runs, "failback", "start", code=3)["hint"]
    done = command(runs, "failback", "start", "--new", "--datastore", datastore, "--host", host)
    assert done["state"] == "failing-back"
    assert runs.source() == at_target(runs, tmp_path)
    with plain_api.session(runs.lab, "prod") as instance:
        assert plain_api.vm_named(instance, "web-01").config.instanceUuid == uuid
    assert command(runs, "failback", "commit")["state"] == "ready"
    runs.write(3)
    report = runs.replicate()
    assert runs.restore_point(report["restore_point"]) == runs.source()


@pytest.mark.long
def test_interrupted_it_leaves_nothing_open_and_goes_on(runs: Runs, tmp_path: Path) -> None:
    [document] = (runs.lab.folder / "repository" / "replicas").glob("*/replica.json")
    state = document.with_name("failover.json")
    runs.lab.lose_power("prod", "web-01")
    command(runs, "failover", "start")
    runs.lab.write_random("dr", REPLICA, 0, 9 * GRAIN, 40 * GRAIN, "at the target")
    runs.lab.set("dr.latency_us=200000")
    process = runs.start("failback", "start", "web-01", "--yes")
    until(lambda: '"comparing"' in state.read_text(), process)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    [vm] = json.loads(out)["vms"]
    assert (vm["result"], vm["state"]) == ("interrupted", "failing-back")
    runs.lab.set("dr.latency_us=0")
    with plain_api.session(runs.lab, "dr") as instance:
        names = [one.name for one in plain_api.vm_named(instance, REPLICA).snapshot.rootSnapshotList]
    assert not any(name.startswith("vrepl-source-") for name in names)
    assert command(runs, "failback", "start")["state"] == "failing-back"
    assert runs.source() == at_target(runs, tmp_path)


@pytest.mark.long
def test_killed_in_every_phase_it_goes_on_where_it_stood(runs: Runs, tmp_path: Path) -> None:
    """Every call of it is a moment to die at in tests/unit/test_failback_driver.py; here the sites are processes."""
    [document] = (runs.lab.folder / "repository" / "replicas").glob("*/replica.json")
    state = document.with_name("failover.json")

    def has_come_to(phase: str) -> Callable[[], bool]:
        return lambda: f'"phase":"{phase}"' in state.read_text().replace(" ", "")

    runs.lab.lose_power("prod", "web-01")
    command(runs, "failover", "start")
    before = runs.source()
    for grain, phase in enumerate(("preparing", "comparing", "shutting-down", "catching-up", "starting"), 3):
        runs.lab.write_random("dr", REPLICA, 0, grain * GRAIN, GRAIN, phase)
        ran = at_target(runs, tmp_path)
        runs.kill_when(has_come_to(phase), "failback", "start", "web-01", "--yes")
        assert command(runs, "failback", "start")["state"] == "failing-back"
        assert runs.source() == ran, phase
        runs.kill_when(has_come_to("undoing"), "failback", "undo", "web-01", "--yes")
        assert command(runs, "failback", "undo")["state"] == "failed-over"
        assert (runs.source(), at_target(runs, tmp_path)) == (before, ran), phase
    command(runs, "failback", "start")
    runs.kill_when(has_come_to("committing"), "failback", "commit", "web-01", "--yes")
    assert command(runs, "failback", "commit")["state"] == "ready"
    assert runs.restore_point(runs.replicate()["restore_point"]) == runs.source()
