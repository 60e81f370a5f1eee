"""`vrepl lab demo`, and with it the whole road from a lab's start to a proven replica."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vrepl_lab.folder import read_state
from vrepl_lab.lab import Lab

COMMAND = [sys.executable, "-c", "from vrepl.cli import main; main()", "lab", "demo", "--disk-mib", "32"]


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ((), "nbdssl"),
        pytest.param(("--no-vddk", "--proxy", "hotadd"), "hotadd", marks=pytest.mark.long),
        pytest.param(("--no-vddk",), "nbdssl", marks=pytest.mark.long),
    ],
)
def test_the_demo_ends_well_and_leaves_nothing(lab: Lab, tmp_path: Path, options: tuple[str, ...], mode: str) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [line.split() for line in lines]
    first = [row for row in rows if row[0] in {"web-01", "db-01", "app-01"}]
    assert [row[:2] for row in first] == [["web-01", "0"], ["db-01", "0"], ["db-01", "1"], ["app-01", "0"]]
    assert [row[-1] == "yes" for row in rows[2:]] == [False, True] * 4
    assert [row[2] for row in first] == [mode] * 4
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert list(tmp_path.iterdir()) == []
    assert lab.status()


def test_an_interrupted_demo_ends_its_lab(lab: Lab, lab_folders: Callable[[], Path]) -> None:
    folder = lab_folders()
    child = subprocess.Popen(
        [*COMMAND, "--dir", str(folder)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("== replicate"):
            break
    sites = read_state(folder)
    assert sites
    assert all(site.process.is_alive() for site in sites.values())
    os.killpg(child.pid, signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 130
    deadline = time.monotonic() + 20
    while any(site.process.is_alive() for site in sites.values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(site.process.is_alive() for site in sites.values())
