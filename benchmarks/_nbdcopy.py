"""The peer: nbdkit's vddk plugin on each side and nbdcopy between them, over the same library and files.

`nbdkit` is what the PATH has, or VREPL_NBDKIT (with arguments if need be), where its vddk plugin works.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.bench import cpu_seconds

NBDKIT = shlex.split(os.environ.get("VREPL_NBDKIT", "nbdkit"))
START_SECONDS = 20.0


def available() -> bool:
    """Whether both programs are there and nbdkit has the plugin."""
    if not all(map(shutil.which, (NBDKIT[0], "nbdcopy"))):
        return False
    return subprocess.run([*NBDKIT, "vddk", "--dump-plugin"], capture_output=True, check=False).returncode == 0


@contextmanager
def served(folder: Path, password: Path, thumbprint: str, file: str, *, writable: bool) -> Iterator[tuple[str, int]]:
    """An nbdkit that serves one disk: its URI and process id. The disk is opened when a client comes."""
    name = "target" if writable else "source"
    socket, pid_file = folder / f"{name}.sock", folder / f"{name}.pid"
    for old in (socket, pid_file):
        old.unlink(missing_ok=True)
    command = [
        *NBDKIT, "--foreground", "--exit-with-parent", *([] if writable else ["--readonly"]),
        "--unix", str(socket), "--pidfile", str(pid_file),
        "vddk", f"libdir={folder}", "server=vc.lab", "user=user", f"password=+{password}",
        f"thumbprint={thumbprint}", "vm=moref=vm-1", f"file={file}", "transports=nbdssl",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (pid_file.is_file() and pid_file.read_text().strip()):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"nbdkit does not start: {process.communicate()[1]}")
            time.sleep(0.02)
        yield f"nbd+unix:///?socket={socket}", int(pid_file.read_text())
    finally:
        process.terminate()
        process.communicate()


def copy(folder: Path, password: str, thumbprint: str, source: str, target: str) -> dict[str, float]:
    """Seconds from the start of nbdcopy to its end, flushed, and the processor seconds of all three meanwhile."""
    secret = folder / "password"
    secret.write_text(password)
    secret.chmod(0o600)
    with ExitStack() as stack:
        uris, pids = zip(
            *(
                stack.enter_context(served(folder, secret, thumbprint, file, writable=writable))
                for file, writable in ((source, False), (target, True))
            ),
            strict=True,
        )
        cpu = -sum(map(cpu_seconds, pids)) - _children_seconds()
        began = time.perf_counter()
        done = subprocess.run(["nbdcopy", "--flush", *uris], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"nbdcopy failed: {done.stderr}")
        seconds = time.perf_counter() - began
        cpu += sum(map(cpu_seconds, pids)) + _children_seconds()
    return {"seconds": seconds, "cpu": cpu}


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
