"""A lab that is small enough to start in about a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vrepl_lab.spec import LabSpec


def small_spec() -> LabSpec:
    """The VMs of `vrepl lab up`, with smaller disks."""
    from vrepl_lab.spec import demo_spec

    return demo_spec(disk_mib=16)
