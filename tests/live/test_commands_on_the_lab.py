"""Promises of the commands, tried on the lab as a user tries them: exit codes, JSON, a clean stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrepl_lab.lab import Lab
from vrepl_lab.spec import LabSpec, demo_spec


@pytest.fixture(scope="module")
def folder(start_shared_lab: Callable[[LabSpec], Lab]) -> Path:
    return start_shared_lab(demo_spec(disk_mib=32)).folder


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vrepl", "--config", str(folder / "vrepl.toml"), *arguments]


def vrepl(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(folder, *arguments), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def told(folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(vrepl(folder, *arguments, "--json", code=code).stdout)
    assert data["version"] == 1
    return data


def lab(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "vrepl", "lab", *arguments, "--dir", str(folder)], check=True)


def test_the_labs_own_commands_answer_in_json(folder: Path, tmp_path: Path) -> None:
    at = ("--dir", str(folder))
    again = told(folder, "lab", "up", *at)
    assert (again["folder"], again["config"], again["started"]) == (str(folder), str(folder / "vrepl.toml"), False)
    assert told(folder, "lab", "set", *at, "prod.latency_us=0")["set"] == ["prod.latency_us=0"]
    out = tmp_path / "disk.img"
    exported = told(folder, "lab", "disk", "export", *at, "prod", "app-01", "0", str(out))
    assert (exported["file"], exported["bytes"]) == (str(out), out.stat().st_size)


def test_from_check_to_history(folder: Path) -> None:
    assert told(folder, "check")["ok"] is True
    there = {vm["name"]: vm for vm in told(folder, "vms", "prod")["vms"]}
    assert there["web-01"]["replicable"]
    assert not there["legacy-01"]["replicable"]
    assert "independent" in there["legacy-01"]["reason"]

    planned = told(folder, "plan", "demo")
    assert planned["run"]["result"] == "planned"
    assert {disk["kind"] for vm in planned["vms"] for disk in vm["disks"]} == {"full"}

    run = told(folder, "replicate", "demo")
    assert run["run"]["result"] == "success"
    assert [vm["name"] for vm in run["vms"]] == ["web-01", "db-01", "app-01"]
    assert all(vm["restore_point"] for vm in run["vms"])
    sides = [side for vm in run["vms"] for disk in vm["disks"] for side in disk["transport"].values()]
    assert {side["mode"] for side in sides} == {"nbdssl"}
    assert all(side["reason"] for side in sides)

    points = told(folder, "restore-points", "web-01")["restore_points"]
    assert [point["id"] for point in points] == [run["vms"][0]["restore_point"]]
    assert {one["name"] for one in told(folder, "replicas")["replicas"]} == {
        "web-01-replica",
        "db-01-replica",
        "app-01-replica",
    }
    verified = told(folder, "verify")
    assert [vm["result"] for vm in verified["vms"]] == ["success"] * 3
    assert told(folder, "restore-points", "web-01-replica")["restore_points"][0]["verified"]["good"] is True
    assert told(folder, "report")["run"]["id"] == run["run"]["id"]
    assert told(folder, "history")["runs"][0]["id"] == run["run"]["id"]
    assert "web-01" in vrepl(folder, "report").stdout
    assert told(folder, "repository", "check")["sound"] is True


def test_an_interrupted_run_leaves_the_source_clean_and_the_next_goes_on(folder: Path) -> None:
    vrepl(folder, "replicate", "demo", "--vm", "web-01")
    lab(folder, "disk", "write", "prod", "web-01", "0", "--offset", "1048576", "--length", "25165824", "--seed", "1")
    lab(folder, "set", "bandwidth_mib_s=4")
    running = subprocess.Popen(
        command(folder, "-v", "replicate", "demo", "--vm", "web-01"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stderr is not None
    for line in running.stderr:
        if b"web-01: disk 0" in line:
            break
    time.sleep(1.5)  # into the transfer: at 4 MiB/s it takes six seconds
    running.send_signal(signal.SIGINT)
    asked = time.monotonic()
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert time.monotonic() - asked < 20
    lab(folder, "set", "bandwidth_mib_s=0")
    there = {vm["name"]: vm for vm in told(folder, "vms", "prod")["vms"]}
    assert there["web-01"]["snapshots"] == []
    assert told(folder, "history")["runs"][0]["result"] == "interrupted"
    run = told(folder, "replicate", "demo", "--vm", "web-01")
    assert run["vms"][0]["disks"][0]["resumed"] is True
    assert told(folder, "verify", "web-01")["vms"][0]["result"] == "success"


@pytest.mark.parametrize("vm", ["db-01", pytest.param("app-01", marks=pytest.mark.long)])
def test_check_names_the_host_whose_port_is_closed(vm: str, folder: Path) -> None:
    """Whether or not it is that of the VM (app-01, which is off) whose disk VDDK would read."""
    host = next(one["host"] for one in told(folder, "vms", "prod")["vms"] if one["name"] == vm)
    lab(folder, "set", f"prod.nfc_closed={host}")
    try:
        failed = [one for one in told(folder, "check", code=1)["checks"] if one["status"] == "failed"]
        assert [host in one["name"] for one in failed] == [True]
        lines = vrepl(folder, "check", code=1).stdout.splitlines()
        (number,) = [number for number, line in enumerate(lines) if "FAILED" in line]
        assert lines[number].startswith("  FAILED  port ")
        assert f" of {host}: {host}:" in lines[number]
        assert lines[number + 1].startswith("      hint: open TCP")
        assert [line for line in lines if not line.startswith(" ")][:3] == ["this machine", "site prod", "site dr"]
        assert len(lines) > 20, "the others are told too, a line each"
        assert vrepl(folder, "check", "--nagios", code=2).stdout.startswith("VREPL CRITICAL - ")
    finally:
        lab(folder, "set", "prod.nfc_closed=none")


def test_a_wrong_password_is_12_and_a_privilege_is_named(folder: Path) -> None:
    wrong = folder / "secrets" / "wrong"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    right = (folder / "vrepl.toml").read_text()
    other = folder / "wrong.toml"
    other.write_text(right.replace(str(folder / "secrets" / "prod-password"), str(wrong)))
    refused = subprocess.run(
        [sys.executable, "-m", "vrepl", "--config", str(other), "replicate", "demo"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert refused.returncode == 12
    assert "hint:" in refused.stderr
    lab(folder, "set", "prod.missing_privileges=VirtualMachine.State.CreateSnapshot")
    try:
        checks = told(folder, "check", code=1)["checks"]
        assert any("VirtualMachine.State.CreateSnapshot" in (one["detail"] or "") for one in checks)
    finally:
        lab(folder, "set", "prod.missing_privileges=none")
