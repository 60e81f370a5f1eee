"""A traced run of the lab: both borders are in the file, and no secret of the lab's is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.vrepl_runs import Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec


def test_a_traced_run_tells_calls_and_messages_and_no_password(
    start_lab: Callable[[LabSpec], Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskSpec(2 * MIB, content="random")
    lab = start_lab(LabSpec.of_vms(VmSpec("web-01", disks=(disk,)), job_vms=["web-01"]))
    written = tmp_path / "trace"
    monkeypatch.setenv("VREPL_TRACE", str(written))
    Runs(lab, tmp_path).replicate()
    text = written.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["what"] for line in lines} >= {"api", "to_mover", "from_mover"}
    methods = {line["method"] for line in lines if line["what"] == "api"}
    assert methods >= {"Login", "CreateSnapshot_Task", "RemoveSnapshot_Task", "CreateVM_Task"}
    orders = [line["message"]["order"] for line in lines if line.get("message", {}).get("op") == "transfer"]
    assert [order["source"]["vm_name"] for order in orders] == ["web-01"]
    assert written.stat().st_mode & 0o777 == 0o600
    for site in ("prod", "dr"):
        assert lab.password(site) not in text
    assert "vmware_soap_session" not in text
