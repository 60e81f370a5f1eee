"""The tests for real vCenters pass on the lab as well, as somebody would run them, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pyVmomi import vim

from tests.support import plain_api
from tests.support.small_lab import small_spec
from vrepl_lab.lab import Lab
from vrepl_lab.spec import LabSpec

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "tests/vsphere", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=280
    )


def test_they_pass_and_clean_up(start_lab: Callable[[LabSpec], Lab]) -> None:
    lab = start_lab(small_spec())
    lab.set("cbt_false=0")  # they count the bytes that are read
    done = run("-m", "vsphere", VREPL_TEST_CONFIG=str(lab.config_file))
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    for site in ("prod", "dr"):
        with plain_api.session(lab, site) as api:
            view = api.content.viewManager.CreateContainerView(api.content.rootFolder, [vim.VirtualMachine], True)
            assert [vm.name for vm in view.view if vm.name.startswith("vrepl-test-")] == []


def test_they_are_off_by_default() -> None:
    done = run()
    assert "5 deselected" in done.stdout
    assert done.returncode == 5, "pytest's code for: nothing was run"
