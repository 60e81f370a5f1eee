"""A lab's folder: where it is, whose it is, and what lab.json says was started."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vrepl.state_folder import state_folder
from vrepl_lab.errors import LabError
from vrepl_lab.processes import ProcessIdentity

SITES = ("prod", "dr")
STATE = "lab.json"
KIND = "vrepl-lab"


def default_folder() -> Path:
    return state_folder() / "lab"


@dataclass(frozen=True, slots=True)
class RunningSite:
    """One started simulator, as lab.json keeps it."""

    process: ProcessIdentity
    port: int
    vddk_port: int
    nfc_port: int
    hosts: tuple[str, ...]
    sha1_thumbprint: str
    sha256_thumbprint: str


def starting(child: subprocess.Popen[bytes]) -> RunningSite:
    """A simulator that does not serve yet."""
    identity = ProcessIdentity.of(child.pid) or ProcessIdentity(child.pid, 0, "")
    return RunningSite(identity, 0, 0, 0, (), "", "")


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Two starters on one folder: the second waits, and then finds a running lab."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError as error:
        raise LabError(f"{folder} is not a folder", hint="give another one with --dir") from error
    except OSError as error:
        raise LabError(f"cannot make {folder}: {error.strerror}", hint="give another one with --dir") from error
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_state(folder: Path) -> dict[str, RunningSite] | None:
    """What lab.json says was started; None if this is no lab's folder."""
    try:
        value = json.loads((folder / STATE).read_text())
        if value.get("kind") != KIND:
            return None
        return {
            name: RunningSite(
                **{**entry, "process": ProcessIdentity(**entry["process"]), "hosts": tuple(entry["hosts"])}
            )
            for name, entry in value["sites"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_state(folder: Path, sites: Mapping[str, RunningSite]) -> None:
    value = {"kind": KIND, "version": 1, "sites": {name: asdict(site) for name, site in sites.items()}}
    temporary = folder / f"{STATE}.new"
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.rename(folder / STATE)


def loopback_network(folder: Path) -> tuple[int, int]:
    """The A and B of this lab's ESXi addresses 127.A.B.x: other labs beside it have others."""
    digest = hashlib.sha256(os.fsencode(folder)).digest()
    return digest[0] % 200 + 20, digest[1] % 250 + 2
