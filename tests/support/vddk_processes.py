"""Clients of the lab's VDDK, each a process of its own that opens one disk (tests/support/vddk_client.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.plain_api import disk_path
from vrepl_lab.lab import USER, Lab

CLIENT = Path(__file__).parent
PROLOGUE = """
import sys, time
from pathlib import Path
from vddk_client import *
s = settings()
library = Library(s["library"], s["config"])
params = library.params(s["thumbprint"], moref=s["moref"], server="127.0.0.1", port=s["port"], password=s["password"],
                        nfc_port=s["nfc_port"])
params.credentials[0] = s["user"].encode()

def opened(read_only=True, snapshot=None, modes=s["modes"], path=s["path"]):
    return library.open(library.connect(params, read_only, snapshot, modes), path, 4 if read_only else 0)
"""


class Client:
    """Starts client processes for one disk of the lab."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder
        (folder / "vddk.conf").write_text(
            f"vixDiskLib.nfcAio.Session.BufSizeIn64KB=16\nvixDiskLib.nfcAio.Session.BufCount=4\ntmpDirectory={folder}\n"
        )

    def start(
        self, body: str, vm: Any, *, proxy: str = "bare", modes: str = "nbdssl", path: str | None = None, **more: Any
    ) -> subprocess.Popen[str]:
        site = self._lab.sites["prod"]
        values = {
            "library": str(self._lab.libdir(proxy) / "lib64/libvixDiskLib.so.8"),
            "config": str(self._folder / "vddk.conf"),
            "thumbprint": site.sha1_thumbprint,
            "moref": vm._moId,
            "port": site.port,
            "nfc_port": site.nfc_port,
            "user": USER,
            "password": self._lab.password("prod"),
            "modes": modes,
            "path": path or disk_path(vm.config),
            **more,
        }
        given = self._folder / "settings.json"
        given.write_text(json.dumps(values))
        given.chmod(0o600)
        return subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + body, str(given)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CLIENT)},
        )

    def run(self, body: str, vm: Any, **values: Any) -> Any:
        """What the client answered. A VixError ends it; its code is returned as ["error", code]."""
        child = self.start(body, vm, **values)
        output, errors = child.communicate(timeout=60)
        if child.returncode:
            last = errors.strip().splitlines()[-1]
            assert "VixError: " in last, errors
            return ["error", int(last.rpartition(" ")[2]) & 0xFFFF]
        return json.loads(output)

    @contextmanager
    def holding(self, vm: Any, *, write: bool, **values: Any) -> Iterator[None]:
        """A disk of the VM is open as long as this lasts; then the client dies and leaves its lock to linger."""
        child = self.start(f"handle = opened(read_only={not write}); answer('open'); time.sleep(120)", vm, **values)
        try:
            assert child.stdout is not None
            assert json.loads(child.stdout.readline() or "null") == "open", child.communicate()[1]
            yield
        finally:
            child.send_signal(signal.SIGKILL)
            child.communicate()
