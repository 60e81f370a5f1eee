"""vrepl's binding over a library that is neither VMware's nor ours, where one is at hand.

nbdkit's own tests have a dummy VDDK; `VREPL_DUMMY_VDDK` names the folder that holds it as libvixDiskLib.so.6 (or a
newer name). It has none of the optional functions and a disk of 512 KiB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
from vrepl.ports import SiteConnection
from vrepl.transport.buffers import Buffer
from vrepl.extents import Extent
from vrepl.vddk.disk import AsyncDisk
from vrepl.vddk.handles import Connection
from vrepl.vddk.library import Library, find_library
from queue import SimpleQueue

libdir = Path(sys.argv[1])
library = Library(find_library(libdir))
library.initialise(libdir, None, lambda kind, text: None)
site = SiteConnection("vc", 443, 902, "user", "secret", "AA")
with Connection(library, site, "vm-1", None, "nbdssl", read_only=False) as connection:
    disk = AsyncDisk(connection.open("[ds] a.vmdk", read_only=False))
    buffer, answers = Buffer(4096), SimpleQueue()
    buffer.view[:512] = b"v" * 512
    disk.submit_write(1024, buffer, 0, 512, answers.put)
    disk.submit_read(1024, buffer, 512, 512, answers.put)
    errors = [answers.get(), answers.get()]
    disk.wait()
    disk.flush()
    seen = [disk.capacity, disk.mode, errors, bytes(buffer.view[512:1024]) == b"v" * 512,
            list(disk.allocated(Extent(0, 524288))), library.error_text(1)]
    disk.close()
library.exit()
print(json.dumps(seen))
"""


@pytest.mark.skipif("VREPL_DUMMY_VDDK" not in os.environ, reason="VREPL_DUMMY_VDDK names no folder")
def test_the_binding_works_as_far_as_the_dummy_goes() -> None:
    folder = os.environ["VREPL_DUMMY_VDDK"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        524288, "file", [None, None], True, [[0, 524288]], "dummy-vddk: error message",
    ]  # fmt: skip
