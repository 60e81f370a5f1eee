"""The folder that is VDDK's own on this machine: its temporary files, and the configuration files that name it.

One folder for all data movers and runs of a user, and it stays: VDDK keeps its temporary files where `tmpDirectory`
says (Virtual Disk Programming Guide, "Initialize Virtual Disk API"), and what a killed mover noted there of the disks
that it had hot-added must be there for the `VixDiskLib_Cleanup` of a later one. A killed mover leaves nothing of its
own either.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def scratch_folder(state_folder: Path) -> Path:
    """`vddk` in the user's state folder, made if need be, for its owner's eyes only. Raises OSError."""
    folder = state_folder / "vddk"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write_config(folder: Path, *, buffer_units: int, buffer_count: int) -> Path:
    """VDDK's configuration file for these NFC buffers; written anew, whole or not at all. Raises OSError.

    Its name says what is in it, so that movers with the same settings share it.
    """
    path = folder / f"vddk-{buffer_units}x{buffer_count}.conf"
    lines = (
        f"tmpDirectory={folder}",
        f"vixDiskLib.nfcAio.Session.BufSizeIn64KB={buffer_units}",
        f"vixDiskLib.nfcAio.Session.BufCount={buffer_count}",
        "vixDiskLib.transport.LogLevel=3",
    )
    descriptor, temporary = tempfile.mkstemp(prefix=".vddk-", dir=folder)  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
