"""Pythons of this machine beside the one that runs the tests, by version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from vrepl.proxy.install import NEWEST, OLDEST

VERSIONS = [f"3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)]
"""That vrepl runs under."""
PROGRAM = "import sys, venv, pip; print('.'.join(map(str, sys.version_info[:2])))"


@cache
def other_pythons() -> dict[str, str]:
    """Version, as `3.12` -> a Python of it that vrepl runs under, with pip; empty where there is none."""
    found: dict[str, str] = {}
    for version in VERSIONS:
        if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
            continue
        for candidate in _candidates(version):
            try:
                done = subprocess.run(
                    [candidate, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False
                )
            except OSError:
                continue
            if done.stdout.strip() == version:
                found[version] = candidate
                break
    return found


def _candidates(version: str) -> list[str]:
    """On the path, or kept by pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = sorted(str(path) for path in root.glob(f"versions/{version}.*/bin/python3"))
    there = shutil.which(f"python{version}")
    return [*([there] if there else []), *kept]
