"""The limit of HotAdd by vrepl itself: threads that read a block and write it, nothing else. A process of its own.

`_bare_block.py SOURCE TARGET BYTES THREADS`: no digests, zero detection, checkpoints or log.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import sys
import threading
import time

BLOCK = 1 << 20


def main(source: str, target: str, size: int, threads: int) -> dict[str, float]:
    began = time.perf_counter()
    reader, writer = os.open(source, os.O_RDONLY | os.O_DIRECT), os.open(target, os.O_RDWR | os.O_DIRECT)
    blocks = itertools.count()

    def work() -> None:
        buffer = memoryview(mmap.mmap(-1, BLOCK))
        while (offset := next(blocks) * BLOCK) < size:
            length = min(BLOCK, size - offset)
            if os.preadv(reader, [buffer[:length]], offset) != length:
                raise SystemExit("a short read")
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
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
