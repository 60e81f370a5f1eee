"""Reads and writes a disk through VDDK in a process of its own, sharing no code with vrepl: no ssl, no hashlib here.

Takes one JSON object on stdin (passwords never stand on a command line), writes one to stdout.
"""

from __future__ import annotations

import ctypes as c
import json
import random
import sys
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.support.vddk_client import SECTOR, Handle, Library, check

PIECE = 1 << 20
READ_ONLY = 4
SONAMES = [(f"libvixDiskLib.so.{major}", major, minor) for major, minor in ((9, 0), (8, 0), (7, 0), (6, 7))]


def load(libdir: Path) -> Library:
    name, major, minor = next(one for one in SONAMES if (libdir / "lib64" / one[0]).exists())
    library = Library(str(libdir / "lib64" / name), init=False)
    check(
        library.c.VixDiskLib_InitEx(
            c.c_uint32(major), c.c_uint32(minor), *library.callbacks, str(libdir).encode(), None
        )
    )
    return library


def write(disk: Handle, pieces: list[list[Any]]) -> int:
    """Each piece: offset, length (bytes) and the seed of its random bytes; seed null: zeros. Returns bytes."""
    written = 0
    for offset, length, seed in pieces:
        source = random.Random(seed)
        for at in range(offset, offset + length, PIECE):
            size = min(PIECE, offset + length - at)
            disk.write(at, bytes(size) if seed is None else source.randbytes(size))
        written += length
    return written


def digests(disk: Handle) -> list[str]:
    """One of each MiB."""
    capacity = int(disk.info()["capacity"]) * SECTOR
    return [blake3(disk.read(at, min(PIECE, capacity - at))).hexdigest() for at in range(0, capacity, PIECE)]


def main() -> None:
    order = json.load(sys.stdin)
    library = load(Path(order["libdir"]))
    params = library.params(order["thumbprint"], order["moref"], order["server"], order["password"], order["port"])
    params.credentials[0] = order["user"].encode()
    params.nfc_port = order["nfc_port"]
    reading = "write" not in order
    connection = library.connect(params, read_only=reading, snapshot=order.get("snapshot"), modes="nbdssl")
    disk = library.open(connection, order["path"], READ_ONLY if reading else 0)
    try:
        answer: Any = digests(disk) if reading else write(disk, order["write"])
    finally:
        disk.close()
        check(library.c.VixDiskLib_Disconnect(connection))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
