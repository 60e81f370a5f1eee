"""The binding of libvixDiskLib: layouts, prototypes, finding and loading it, what its errors mean."""

from __future__ import annotations

import ctypes as c
import subprocess
import sys
from pathlib import Path

import pytest

from vrepl.errors import (
    DiskError,
    DiskLockedError,
    LibraryError,
    NfcMemoryError,
    TransientDiskError,
    TransportModeError,
)
from vrepl.movers.environment import mover_environment
from vrepl.movers.settings import MoverSettings
from vrepl.vddk import abi
from vrepl.vddk.codes import MEANINGS, error_of
from vrepl.vddk.library import Library, candidates, find_library
from vrepl.vddk.purity import foreign_openssl


@pytest.mark.parametrize(
    ("structure", "field", "offset"),
    [
        (abi.ConnectParams, "vmx_spec", 0),
        (abi.ConnectParams, "server_name", 8),
        (abi.ConnectParams, "thumbprint", 16),
        (abi.ConnectParams, "private_use", 24),
        (abi.ConnectParams, "credential_type", 32),
        (abi.ConnectParams, "credentials", 40),
        (abi.ConnectParams, "port", 64),
        (abi.ConnectParams, "nfc_host_port", 68),
        (abi.ConnectParams, "vim_api_version", 72),
        (abi.ConnectParams, "reserved", 80),
        (abi.ConnectParams, "state", 88),
        (abi.ConnectParams, "spec", 96),
        (abi.ConnectParams, "spec_type", 120),
        (abi.Info, "capacity", 24),
        (abi.Info, "adapter_type", 32),
        (abi.Info, "links", 36),
        (abi.Info, "parent_file_name_hint", 40),
        (abi.Info, "uuid", 48),
        (abi.Info, "logical_sector_size", 56),
        (abi.Info, "physical_sector_size", 60),
        (abi.BlockList, "blocks", 8),
        (abi.CreateParams, "capacity", 16),
    ],
)
def test_layouts(structure: type[c.Structure], field: str, offset: int) -> None:
    assert getattr(structure, field).offset == offset


def test_sizes() -> None:
    assert c.sizeof(abi.ConnectParams) == 128
    assert c.sizeof(abi.Info) == 64
    assert c.sizeof(abi.VixError) == 8


def test_every_call_that_can_fail_returns_64_bits() -> None:
    prototypes = abi.REQUIRED | abi.OPTIONAL
    others = {"Exit", "FreeErrorText", "FreeConnectParams", "FreeInfo", "GetErrorText"}
    others |= {"GetTransportMode", "AllocateConnectParams", "ListTransportModes"}
    assert {name for name, (result, _) in prototypes.items() if result is not c.c_uint64} == others
    assert prototypes["GetErrorText"][0] is c.c_void_p, "c_char_p would lose the pointer that must be freed"


def test_the_newest_library_is_found_lib64_first(tmp_path: Path) -> None:
    (tmp_path / "lib64").mkdir()
    for name in ("libvixDiskLib.so.9", "lib64/libvixDiskLib.so.7", "lib64/libvixDiskLib.so.8"):
        (tmp_path / name).touch()
    assert find_library(tmp_path) == tmp_path / "lib64/libvixDiskLib.so.8"
    assert len(candidates(tmp_path)) == 8


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "the folder holds nothing"),
        (["readme.txt"], "the folder holds readme.txt"),
        (["lib64/libvixDiskLib.so.5"], r"found libvixDiskLib\.so\.5"),
    ],
)
def test_a_missing_library_says_what_was_looked_for_and_what_is_there(
    tmp_path: Path, files: list[str], says: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(LibraryError, match=rf"libvixDiskLib\.so\.9 to libvixDiskLib\.so\.6.*{says}") as caught:
        find_library(tmp_path)
    assert "libdir" in (caught.value.hint or "")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="does not exist"):
        find_library(tmp_path / "nowhere")


def test_a_file_that_is_no_library_passes_the_loaders_words_on(tmp_path: Path) -> None:
    path = tmp_path / "libvixDiskLib.so.8"
    path.write_bytes(b"not an ELF file" * 100)
    with pytest.raises(LibraryError, match=r"libvixDiskLib\.so\.8.*invalid ELF header"):
        Library(path)


@pytest.mark.parametrize(
    ("code", "mode", "kind", "hint"),
    [
        (14009, "nbdssl", TransientDiskError, "902"),
        (14011, "nbd", TransientDiskError, "checkpoint"),
        (18000, None, TransientDiskError, "902"),
        (15, None, DiskLockedError, "another client"),
        (15, "hotadd", DiskLockedError, "another client"),
        (13, "nbdssl", DiskError, "privileges"),
        (3014, None, DiskError, "privilege"),
        (16064, None, DiskError, "licence"),
        (16064, None, DiskError, "Global.EnableMethods"),
        (14014, "nbdssl", TransientDiskError, "restarts"),
        (14015, "nbdssl", TransientDiskError, "not available"),
        (14007, "nbd", TransientDiskError, "socket"),
        (26, None, TransientDiskError, "not connected"),
        (34, "nbdssl", TransientDiskError, "disconnected"),
        (14012, "nbdssl", DiskError, "tmpDirectory"),
        (11, "nbdssl", DiskError, "a write was refused"),
        (16, "nbdssl", DiskError, "VMDB"),
        (1, None, DiskError, "thumbprint"),
        (26000, "nbdssl", DiskError, "mixed"),
        (2, "nbdssl", NfcMemoryError, "smaller"),
        (7, "hotadd", TransportModeError, "next mode"),
        (14011, "san", TransportModeError, "checkpoint"),
        (4242, "nbdssl", DiskError, ""),
    ],
)
def test_what_a_code_means(code: int, mode: str | None, kind: type[DiskError], hint: str) -> None:
    error = error_of(0x500000000 | code, "reading x", "VDDK's words", mode=mode, offset=4096)
    assert type(error) is kind
    assert (error.code, error.offset) == (code, 4096)
    assert error.message.startswith(f"reading x at offset 4096: VDDK's words (VixError {code})")
    assert hint in (error.hint or "")


def test_nfc_memory_is_known_by_what_vddk_logs() -> None:
    assert type(error_of(1, "opening x", "NFC error 5 from server")) is NfcMemoryError
    assert type(error_of(1, "opening x", "Unknown error", nfc_memory=True)) is NfcMemoryError


def test_every_meaning_has_a_hint() -> None:
    assert [code for code, meaning in MEANINGS.items() if not meaning.hint] == []


def test_only_anothers_openssl_is_foreign() -> None:
    maps = """\
7f0000-7f1000 r-xp 00000000 08:01 1 /opt/vddk/lib64/libcrypto.so.3
7f1000-7f2000 r-xp 00000000 08:01 2 /usr/lib/x86_64-linux-gnu/libcrypto.so.3
7f2000-7f3000 r--p 00000000 08:01 2 /usr/lib/x86_64-linux-gnu/libcrypto.so.3
7f3000-7f4000 r-xp 00000000 08:01 3 /site-packages/x.libs/libssl-1a2b.so.1.1
7f4000-7f5000 rw-p 00000000 00:00 0
7f5000-7f6000 r-xp 00000000 08:01 4 /usr/lib/libcryptsetup.so.12
"""
    assert foreign_openssl(Path("/opt/vddk"), maps) == [
        "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
        "/site-packages/x.libs/libssl-1a2b.so.1.1",
    ]


def test_what_a_mover_imports_brings_no_openssl() -> None:
    script = (
        "import vrepl.movers.worker, vrepl.repository.digest_sets, vrepl.repository.transferlog, sys, pathlib\n"
        "from vrepl.vddk.purity import assert_pure\n"
        "assert_pure(pathlib.Path('/opt/vddk'))\n"
        "heavy = ('ssl', 'hashlib', 'tempfile', 'random', 'uuid', 'pydantic', 'asyncio')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_a_module_that_brings_openssl_is_named() -> None:
    script = (
        "import hashlib, pathlib\nfrom vrepl.vddk.purity import assert_pure\nassert_pure(pathlib.Path('/opt/vddk'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "_hashlib" in done.stderr


def test_a_movers_environment_puts_vddk_first_and_leaves_secrets_out() -> None:
    given = {"PATH": "/bin", "LD_LIBRARY_PATH": "/elsewhere", "VREPL_PROD_PASSWORD": "secret", "LANG": "C.UTF-8"}
    environment = mover_environment(Path("/opt/vddk"), given)
    assert environment["LD_LIBRARY_PATH"] == "/opt/vddk/lib64:/opt/vddk"
    assert environment["PATH"] == "/bin"
    assert "secret" not in environment.values()


def test_buffers_shrink_until_they_cannot() -> None:
    settings: MoverSettings | None = MoverSettings(Path("/opt/vddk"))
    sizes = []
    while settings is not None:
        sizes.append(settings.nfc_mib)
        settings = settings.smaller()
    assert sizes == [4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625]
