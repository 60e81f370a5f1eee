"""What the README says to type is typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.lab
def test_the_demo_by_hand(tmp_path: Path) -> None:
    """Line by line, in a shell; what a newcomer asks next is answered from the same lab."""
    if os.environ.get("VREPL_NO_LAB") == "1":
        pytest.skip("VREPL_NO_LAB=1")
    block = README[README.index("The demo by hand:") : README.index("## Five steps")]
    lines = re.findall(r"^    \.venv/bin/(vrepl .+)$", block, re.M)
    assert len(lines) == 8
    *work, down = lines
    environment = {**os.environ, "VREPL_CONFIG": "mylab/vrepl.toml"}
    (tmp_path / "vrepl").write_text(f'#!/bin/sh\nexec {sys.executable} -m vrepl "$@"\n')
    (tmp_path / "vrepl").chmod(0o700)

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["sh", "-c", f"./{line}"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert "\x1b" not in done.stdout + done.stderr, "no control codes where nobody looks at a terminal"
        return done

    try:
        outputs = [shell(line).stdout for line in work]
        assert outputs[-1].count("\n20") == 2, "two restore points"
        assert [vm["last_result"] for vm in json.loads(shell("vrepl status --json").stdout)["vms"]] == ["success"] * 3
        shell("vrepl check demo")
        shell("vrepl report --html page.html")
        shell("vrepl diagnose --offline")
        shell("vrepl replicas remove app-01 --yes")
    finally:
        shell(down)
