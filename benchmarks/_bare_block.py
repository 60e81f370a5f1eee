"""The limit of HotAdd by vrepl itself: threads that read a block and write it, nothing else. A process of its own.

`_bare_block.py SOURCE TARGET BYTES THREADS DIGESTS`: no zero detection, checkpoints or log; digests of what was read
where DIGESTS is 1.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import sys
import threading
import time

from blake3 import blake3

BLOCK = 1 << 20
GRAIN = 64 << 10


def hash_grains(view: memoryview) -> None:
    hasher = blake3()
    for start in range(0, len(view), GRAIN):
        hasher.reset()
        hasher.update(view[start : start + GRAIN])
        hasher.digest(16)


def main(source: str, target: str, size: int, threads: int, digests: bool) -> dict[str, float]:
    began = time.perf_counter()
    reader, writer = os.open(source, os.O_RDONLY | os.O_DIRECT), os.open(target, os.O_RDWR | os.O_DIRECT)
    blocks = itertools.count()

    def work() -> None:
        buffer = memoryview(mmap.mmap(-1, BLOCK))
        while (offset := next(blocks) * BLOCK) < size:
            length = min(BLOCK, size - offset)
            if os.preadv(reader, [buffer[:length]], offset) != length:
                raise SystemExit("a short read")
            if digests:
                hash_grains(buffer[:length])
            if os.pwritev(writer, [buffer[:length]], offset) != length:
                raise SystemExit("a short write")

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.fdatasync(writer)
    return {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1")))
