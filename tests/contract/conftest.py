"""Fixtures of the contract tests: the lab's libvixDiskLib over a site that the tests control."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_nfc import GRAIN, THUMBPRINT, Disk, FakeNfc, make_ctk, make_link
from tests.support.vixdisklib_lab import MIB, PATH, FakeLab, compile_library, compilers


@pytest.fixture(scope="session")
def vddk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = compilers()
    if not found and os.environ.get("VREPL_REQUIRE_LAB") != "1":
        pytest.skip("no C compiler (cc, gcc, clang or the ziglang package)")
    folder = tmp_path_factory.mktemp("vddk")
    compile_library(next(iter(found.values()), ["cc"]), folder)
    return folder


@pytest.fixture
def fake_lab(vddk_folder: Path, tmp_path: Path) -> Iterator[FakeLab]:
    """One disk of 1 MiB + 512 bytes: leaf over middle over base, tracked at epoch 7."""
    capacity = MIB + 512
    base = make_link(
        tmp_path / "vm", capacity, {g: bytes([g + 1]) * GRAIN for g in range(8)} | {16: b"\xee" * 512}, junk=b"stale"
    )
    middle = make_link(tmp_path / "vm-000001", capacity, {1: b"\xb1" * GRAIN}, unmapped=[2], junk=b"stale")
    leaf = make_link(tmp_path / "vm-000002", capacity, {3: b"\xc3" * GRAIN}, unmapped=[4], junk=b"stale")
    ctk = make_ctk(tmp_path / "vm-ctk.bin", capacity, epoch=7)
    nfc = FakeNfc({PATH: Disk(capacity, [leaf, middle, base], ctk=ctk)})
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/libvixDiskLib.so.8").symlink_to(vddk_folder / "libvixDiskLib.so.8")
    (tmp_path / "settings.bin").write_bytes(b"")
    (tmp_path / "lib64/lab.conf").write_text(
        f"proxy p1\nserver vc.lab 443 127.0.0.1 {nfc.control_port} {THUMBPRINT} {tmp_path / 'settings.bin'}\n"
    )
    made = FakeLab(tmp_path, nfc)
    made.set()
    yield made
    nfc.close()
