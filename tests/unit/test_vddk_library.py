"""What VDDK is told at its start, and what becomes of what it says."""

from __future__ import annotations

import ctypes as c
import subprocess
from pathlib import Path

import pytest

from vrepl.errors import LibraryError
from vrepl.vddk import abi
from vrepl.vddk.handles import Connection, Handle
from vrepl.vddk.library import Library
from vrepl.vddk.opening import _handle_opener

SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef void Log(const char *, void *);
static void say(Log *log, const char *text) { char arguments[32] = {0}; log(text, arguments); }
uint32_t last_flags;
uint64_t VixDiskLib_InitEx(uint32_t major, uint32_t minor, Log *log, Log *warn, Log *panic, char *dir, char *config)
{
    say(warn, "PhoneHome: CEIP is off");
    say(warn, "a real warning");
    return major * 10 + minor > NEWEST ? 0x500000000u | REFUSAL : 0;
}
char *VixDiskLib_GetErrorText(uint64_t code, char *locale) { return strdup("no"); }
void VixDiskLib_FreeErrorText(char *text) { free(text); }
uint64_t VixDiskLib_Open(void *connection, char *path, uint32_t flags, void **handle)
{
    last_flags = flags;
    *handle = &last_flags;
    return 0;
}
char *VixDiskLib_GetTransportMode(void *handle) { return "hotadd"; }
"""


def built(folder: Path, newest: int, refusal: int = 6, name: str = "libvixDiskLib.so.9") -> Library:
    """A library that knows no API newer than `newest` (major * 10 + minor)."""
    rest = "".join(
        f"uint64_t VixDiskLib_{function}() {{ return 0; }}\n"
        for function in abi.REQUIRED
        if f"VixDiskLib_{function}(" not in SOURCE
    )
    source = folder / "library.c"
    source.write_text(SOURCE + rest)
    path = folder / name
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-w", f"-DNEWEST={newest}", f"-DREFUSAL={refusal}", "-o", path, source], check=True
    )
    return Library(path)


@pytest.mark.parametrize("refusal", [3, 6])
@pytest.mark.parametrize(
    ("name", "newest", "calls"),
    [
        ("libvixDiskLib.so.9", 90, 1),
        ("libvixDiskLib.so.9", 80, 2),
        ("libvixDiskLib.so.9", 65, 5),
        ("libvixDiskLib.so.6", 65, 2),
    ],
)
def test_init_falls_back_through_lower_versions(
    tmp_path: Path, name: str, newest: int, refusal: int, calls: int
) -> None:
    lines: list[tuple[str, str]] = []
    built(tmp_path, newest, refusal, name).initialise(tmp_path, None, lambda kind, text: lines.append((kind, text)))
    assert lines.count(("warn", "a real warning")) == calls


def test_a_library_that_takes_no_version_names_all_that_were_tried(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"version 9\.0, 8\.0, 7\.0, 6\.7, 6\.5 failed: no \(VixError 6\)"):
        built(tmp_path, 10).initialise(tmp_path, None, lambda kind, text: None)


def test_another_failure_is_not_tried_with_lower_versions(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"version 9\.0 failed"):
        built(tmp_path, 10, refusal=2).initialise(tmp_path, None, lambda kind, text: None)


def test_chatter_is_no_warning(tmp_path: Path) -> None:
    lines: list[tuple[str, str]] = []
    built(tmp_path, 90).initialise(tmp_path, None, lambda kind, text: lines.append((kind, text)))
    assert lines == [("log", "PhoneHome: CEIP is off"), ("warn", "a real warning")]


@pytest.mark.parametrize(
    ("mode", "writable", "flags"),
    [
        ("hotadd", True, abi.OPEN_UNBUFFERED),
        ("hotadd", False, abi.OPEN_READ_ONLY),
        ("san", True, 0),
        ("nbdssl", True, 0),
        ("nbd", False, abi.OPEN_READ_ONLY),
    ],
)
def test_writes_over_hotadd_are_unbuffered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, writable: bool, flags: int
) -> None:
    library = built(tmp_path, 90)

    class Connected(Connection):
        def __init__(self, *_: object, read_only: bool) -> None:
            self.library = library
            self._connection = c.c_void_p(1)

        def close(self) -> None:
            pass

    monkeypatch.setattr("vrepl.vddk.opening.Connection", Connected)
    address = type("Address", (), {"vm_ref": "vm-1", "snapshot_ref": None, "path": "[a] b/c.vmdk"})
    handle, _ = _handle_opener(library, address, None, mode, writable=writable)()  # type: ignore[arg-type]
    assert isinstance(handle, Handle)
    assert c.c_uint32.in_dll(library._library, "last_flags").value == flags
