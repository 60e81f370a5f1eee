"""The environment that a data mover starts with, on whichever machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

INHERITED = ("PATH", "HOME", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "PYTHONPATH", "VIRTUAL_ENV")
"""Environment variables that a mover gets; others may hold secrets."""


def mover_environment(libdir: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """A mover's whole environment: VDDK's own libraries first, and nothing that may hold a secret."""
    kept = {name: environment[name] for name in INHERITED if name in environment}
    if libdir is None:
        return kept | {"PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}
    folders = [str(libdir / "lib64"), str(libdir)]
    return kept | {"LD_LIBRARY_PATH": ":".join(folders), "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}
