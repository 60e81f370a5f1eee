"""A lab that is small enough to start in about a second, and how tests start labs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vrepl_lab.lab import Lab
    from vrepl_lab.spec import LabSpec


def small_spec() -> LabSpec:
    """The VMs of `vrepl lab up`, with smaller disks."""
    from vrepl_lab.spec import demo_spec

    return demo_spec(disk_mib=16)


def start_or_skip(folder: Path, spec: LabSpec) -> Lab:
    if os.environ.get("VREPL_NO_LAB") == "1":
        pytest.skip("VREPL_NO_LAB=1")
    from vrepl_lab.errors import LabError
    from vrepl_lab.lab import Lab

    try:
        return Lab.start(folder, spec, say=lambda line: None)
    except LabError as error:
        if os.environ.get("VREPL_REQUIRE_LAB") == "1":
            raise
        pytest.skip(f"no lab: {error}")
