"""What a wheel holds beside the code: a man page for every command, and the page's template."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vrepl.cli import COMMANDS

pytest.importorskip("hatchling")
pytest.importorskip("click_man")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_has_a_man_page_for_every_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        pages = {name.rpartition("/")[2] for name in names if "/man/man1/" in name}
        assert {"vrepl.1", *(f"vrepl-{name}.1" for name in COMMANDS)} <= pages
        assert "vrepl-replicas-remove.1" in pages
        assert "vrepl/report/templates/page.html" in names
        [page] = [name for name in names if name.endswith("/vrepl-status.1")]
        assert b"last good restore point" in opened.read(page)
