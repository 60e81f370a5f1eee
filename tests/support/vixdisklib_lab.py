"""The lab's libvixDiskLib over `fake_nfc`, used from processes of their own through `vddk_client`."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.fake_nfc import THUMBPRINT, Disk, FakeNfc

SOURCES = Path(__file__).parents[2] / "src/vrepl_lab/vixdisklib"
FLAGS = ["-O2", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror"]
MIB = 1 << 20
RULE = struct.Struct("<IIQQQQQ48s8s2Q")
READ_ONLY, SINGLE_LINK = 4, 2
ERROR, FREEZE, CRASH, LOST = 1, 2, 3, 4
OPS = {"open": 1, "read": 2, "write": 3, "flush": 4, "close": 5, "query": 6, "connect": 7, "prepare": 8}
PATH = "[ds] vm/vm.vmdk"


def compile_library(compiler: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, sources in (("libvixDiskLib.so.8", SOURCES), ("libcrypto.so.3", SOURCES / "libcrypto")):
        files = [str(path) for path in sorted(sources.glob("*.c"))]
        command = [*compiler, *FLAGS, f"-Wl,-soname,{name}", "-o", str(folder / name), *files]
        subprocess.run(command, check=True, capture_output=True, text=True)


def compilers() -> dict[str, list[str]]:
    found = {name: [name] for name in ("cc", "gcc", "clang") if shutil.which(name)}
    if subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True).returncode == 0:
        found["zig"] = [sys.executable, "-m", "ziglang", "cc"]
    return found


@dataclass
class FakeLab:
    """A VDDK folder, its site and what the site's settings say."""

    folder: Path
    nfc: FakeNfc

    @property
    def disk(self) -> Disk:
        return self.nfc.disks[PATH]

    def set(self, rules: tuple[bytes, ...] = (), /, **values: int) -> None:
        fields = {
            "latency_us": 0,
            "bandwidth_bytes_s": 0,
            "write_buffer_bytes": 4 * MIB,
            "allocated_supported": 1,
        } | values
        header = struct.pack(
            "<8sIIQQQQQ",
            b"VRLABSET",
            1,
            1,
            *[fields[k] for k in ("latency_us", "bandwidth_bytes_s", "write_buffer_bytes")],
            0,
            fields["allocated_supported"],
        )
        with (self.folder / "settings.bin").open("r+b") as file:
            file.write((header.ljust(128, b"\0") + b"".join(rules)).ljust(4096, b"\0"))

    def seen(self) -> int:
        return int(RULE.unpack_from((self.folder / "settings.bin").read_bytes(), 128)[6])

    def start(self, body: str, **values: Any) -> subprocess.Popen[str]:
        """Runs `body` in a bare Python with the library `lib`, its `params`, and `disk(flags)` to open the disk."""
        arguments = {
            "library": str(self.folder / "lib64/libvixDiskLib.so.8"),
            "thumbprint": THUMBPRINT,
            "path": PATH,
            "init": True,
        } | values
        (self.folder / "arguments.json").write_text(json.dumps(arguments))
        script = f"""\
import os, signal, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from vddk_client import *
s = settings()
lib = Library(s["library"], s.get("config"), s["init"])
params = lib.params(s["thumbprint"])
if s["init"] and s.get("connect", True):
    connection = lib.connect(params, modes="nbdssl")
def disk(flags=0):
    return lib.open(connection, s["path"], flags)
{textwrap.dedent(body)}"""
        command = [sys.executable, "-I", "-S", "-c", script, str(self.folder / "arguments.json")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, body: str, **values: Any) -> Any:
        """The last thing that `body` answered."""
        process = self.start(body, **values)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1]) if out else None


def rule(
    op: str, action: int, code: int = 0, first: int = 1, count: int = 1, param: int = 0, vm: str = "", mode: str = ""
) -> bytes:
    return RULE.pack(OPS[op], action, code, first, count, param, 0, vm.encode(), mode.encode(), 0, 0)
