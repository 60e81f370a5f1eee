"""A VDDK client that nobody here wrote: nbdkit's vddk plugin, unchanged, over the lab's libvixDiskLib.

Runs where `nbdkit vddk` works. VREPL_NBDKIT names another nbdkit, with arguments if need be.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.fake_nfc import PASSWORD, THUMBPRINT
from tests.support.vixdisklib_lab import ERROR, PATH, FakeLab, rule

NBDKIT = shlex.split(os.environ.get("VREPL_NBDKIT", "nbdkit"))


def works() -> bool:
    if not all(map(shutil.which, [NBDKIT[0], "nbdcopy", "nbdinfo"])):
        return False
    return subprocess.run([*NBDKIT, "vddk", "--dump-plugin"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not works(), reason="needs nbdkit with its vddk plugin, nbdcopy and nbdinfo")


def nbdkit(lab: FakeLab, command: str, *arguments: str) -> str:
    """Runs a shell command with $uri set to the lab's disk, and returns what it printed."""
    secret = lab.folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    parameters = [
        f"libdir={lab.folder}",
        "server=vc.lab",
        "user=user",
        f"password=+{secret}",
        f"thumbprint={THUMBPRINT}",
    ]
    parameters += ["vm=moref=vm-1", f"file={PATH}", *arguments]
    options = ["--exit-with-parent", "-U", "-", "--run", command]
    done = subprocess.run(
        [*NBDKIT, *options, "vddk", *parameters], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("mode", ["nbdssl", "hotadd"])
def test_reads_the_whole_disk(fake_lab: FakeLab, tmp_path: Path, mode: str) -> None:
    fake_lab.disk.mode = mode
    before = fake_lab.disk.content()
    nbdkit(fake_lab, f"nbdcopy $uri {tmp_path / 'out'}", "transports=nbdssl")
    assert (tmp_path / "out").read_bytes() == before
    assert fake_lab.nfc.wait_for("released")


@pytest.mark.parametrize("mode", ["nbdssl", "hotadd"])
def test_writes_the_whole_disk(fake_lab: FakeLab, tmp_path: Path, mode: str) -> None:
    fake_lab.disk.mode = mode
    data = random.Random(1).randbytes(fake_lab.disk.capacity)
    (tmp_path / "in").write_bytes(data)
    nbdkit(fake_lab, f"nbdcopy --flush {tmp_path / 'in'} $uri")
    assert fake_lab.disk.content() == data
    assert fake_lab.disk.last_changes() == [7] * 17


def test_sees_what_is_allocated(fake_lab: FakeLab) -> None:
    """nbdkit asks from another thread than the one that opened, and only about whole chunks."""
    fake_lab.set(allocated_supported=2)
    fake_lab.disk.capacity = 1 << 20
    for link in range(3):
        os.truncate(fake_lab.disk.flat(link), 1 << 20)
    lines = nbdkit(fake_lab, "nbdinfo --map $uri").split("\n")
    found = [[int(field) for field in line.split()[:3]] for line in lines if line]
    assert found == [
        [0, 131072, 0],
        [131072, 65536, 3],
        [196608, 65536, 0],
        [262144, 65536, 3],
        [327680, 196608, 0],
        [524288, 524288, 3],
    ]


def test_a_fault_is_an_error_at_the_client(fake_lab: FakeLab, tmp_path: Path) -> None:
    fake_lab.set((rule("read", ERROR, 14010, first=2, count=0),))
    out = nbdkit(fake_lab, f"nbdcopy --request-size=65536 $uri {tmp_path / 'out'} 2>&1 || echo failed")
    assert "failed" in out
