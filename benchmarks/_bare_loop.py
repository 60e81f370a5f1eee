"""The limit: nothing but ctypes calls over the same library and files. A process of its own: `_bare_loop.py ARGUMENTS`.

`naive`: read a block, write a block. Otherwise two asynchronous handles and a ring of buffers, without digests, zero
detection, checkpoints or a log.
"""

from __future__ import annotations

import ctypes as c
import json
import mmap
import resource
import sys
import time
from pathlib import Path
from queue import SimpleQueue

ARGUMENTS = json.loads(Path(sys.argv[1]).read_text())
sys.path.insert(0, ARGUMENTS["root"])

from tests.support.vddk_client import DONE, Library  # noqa: E402 - the checkout's folder is an argument

BLOCK = ARGUMENTS["block"]


def main() -> dict[str, float]:
    library = Library(ARGUMENTS["library"], ARGUMENTS["config"])
    began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    connection = library.connect(library.params(ARGUMENTS["thumbprint"]), modes="nbdssl")
    source, target = (
        library.open(connection, ARGUMENTS[name], flags) for name, flags in (("source", 4), ("target", 0))
    )
    buffers = [mmap.mmap(-1, BLOCK) for _ in range(ARGUMENTS["depth"])]
    addresses = [c.addressof(c.c_char.from_buffer(buffer)) for buffer in buffers]
    (naive if ARGUMENTS["naive"] else asynchronous)(library, source, target, addresses)
    target.flush()
    source.close()
    target.close()
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime}


def naive(library: Library, source: object, target: object, addresses: list[int]) -> None:
    read, write = library.c.VixDiskLib_Read, library.c.VixDiskLib_Write
    read.argtypes = write.argtypes = [c.c_void_p, c.c_uint64, c.c_uint64, c.c_void_p]
    for offset in range(0, ARGUMENTS["capacity"], BLOCK):
        for call, disk in ((read, source), (write, target)):
            if call(disk.handle, offset // 512, BLOCK // 512, addresses[0]):  # type: ignore[attr-defined]
                raise SystemExit("a call failed")


def asynchronous(library: Library, source: object, target: object, addresses: list[int]) -> None:
    read, write = library.c.VixDiskLib_ReadAsync, library.c.VixDiskLib_WriteAsync
    for call in (read, write):
        call.argtypes = [c.c_void_p, c.c_uint64, c.c_uint64, c.c_void_p, DONE, c.c_void_p]
    events: SimpleQueue[tuple[bool, int, int]] = SimpleQueue()
    on_read = DONE(lambda number, code: events.put((True, number, code)))
    on_write = DONE(lambda number, code: events.put((False, number, code)))
    offsets = [0] * len(addresses)
    position, left = 0, ARGUMENTS["capacity"] // BLOCK

    def start(number: int) -> None:
        nonlocal position
        if position < ARGUMENTS["capacity"]:
            offsets[number - 1] = position
            position += BLOCK
            read(source.handle, offsets[number - 1] // 512, BLOCK // 512, addresses[number - 1], on_read, number)  # type: ignore[attr-defined]

    for number in range(1, len(addresses) + 1):
        start(number)
    while left:
        was_read, number, code = events.get()
        if code:
            raise SystemExit(f"VixError {code}")
        if was_read:
            write(target.handle, offsets[number - 1] // 512, BLOCK // 512, addresses[number - 1], on_write, number)  # type: ignore[attr-defined]
        else:
            left -= 1
            start(number)
    target.wait()  # type: ignore[attr-defined]


if __name__ == "__main__":
    print(json.dumps(main()))
