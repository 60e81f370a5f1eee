"""The examples hold what the documentation says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def placed(folder: Path) -> None:
    """The units as they would be installed, with programs and a user that are there."""
    for unit in (EXAMPLES / "systemd").glob("vrepl*.*"):
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
        (folder / unit.name).write_text(text.replace("User=vrepl", "User=nobody"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["vrepl@.service", "vrepl-status.service"])
def test_units_are_exposed_to_little(name: str, tmp_path: Path) -> None:
    placed(tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=30", "--no-pager", str(tmp_path / name)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    [level] = re.findall(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert float(level) <= 3.0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_units_are_valid(tmp_path: Path) -> None:
    placed(tmp_path)
    names = [
        "vrepl@web.service",
        "vrepl@web.timer",
        "vrepl-failed@web.service",
        "vrepl-status.service",
        "vrepl-status.timer",
    ]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in names)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Unknown" not in done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is not installed")
def test_logrotate_takes_the_example(tmp_path: Path) -> None:
    file = tmp_path / "vrepl"
    file.write_text((EXAMPLES / "logrotate").read_text().replace("create 0600 vrepl vrepl", "create 0600"))
    file.chmod(0o600)
    command = ["logrotate", "--debug", "--state", str(tmp_path / "state"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "error:" not in done.stderr
