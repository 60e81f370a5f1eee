"""`vrepl` as a process of its own that has imported everything already.

Tests on the lab start the command line many hundreds of times, and more than half of the processor time of each start
goes into imports. Here a server imports once, and forks for each start: what is forked sets arguments, environment and
standard streams as a new process would have them, runs `main`, and is a child of the process that asked, which waits
for it and kills it as any other. What a start itself promises is tested with `python -m vrepl`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

IMPORTED = ("vrepl.cli", "vrepl.app", "vrepl.engine", "vrepl.vsphere", "vrepl.checks", "vrepl.report")
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphans further down become our children. Only set while a process is made."""
LARGEST_ORDER = 1 << 18


class Server:
    """In the process that asks."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def start(self, arguments: list[str], descriptors: tuple[int, int, int]) -> int:
        """The PID of a new child of this process."""
        order = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        with self._lock:
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._ours, [json.dumps(order).encode()], descriptors)
                answer = self._ours.recv(64)
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert answer, f"the server of preloaded processes has ended with {self._process.wait()}"
        return int(answer)


_servers: dict[int, Server] = {}
"""By process: what a test forks has none."""


class _Preloaded(subprocess.Popen[str]):
    """Popen, but for how the process is made."""

    def _execute_child(self, arguments: list[str], *how: Any) -> None:
        stdin, _, _, stdout, _, stderr = how[9:15]
        server = _servers.get(os.getpid()) or _servers.setdefault(os.getpid(), Server())
        self.pid = server.start(arguments, (stdin, stdout, stderr))
        self._child_created = True
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)


def start(*arguments: str) -> subprocess.Popen[str]:
    """`vrepl ARGUMENTS` in the background; what it says comes through pipes."""
    return _Preloaded(
        list(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """`vrepl ARGUMENTS`, to its end; killed after `timeout` seconds."""
    with start(*arguments) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


# -- in the server ----------------------------------------------------------------------------------------------------


def _serve(orders: socket.socket) -> list[str]:
    """Returns in each process that is made, with its arguments; the server ends with the process that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, LARGEST_ORDER, 3)
        if not order:
            os._exit(0)
        number_read, number_written = os.pipe()
        between = os.fork()  # ends at once, and so leaves its child to the process that asks
        if between == 0:
            made = os.fork()
            if made == 0:
                os.close(number_read)
                os.close(number_written)
                orders.close()
                return _become(json.loads(order), descriptors)
            os.write(number_written, b"%d" % made)
            os._exit(0)
        os.waitpid(between, 0)
        orders.send(os.read(number_read, 64))
        for descriptor in (number_read, number_written, *descriptors):
            os.close(descriptor)


def _become(order: dict[str, Any], descriptors: list[int]) -> list[str]:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    return list(order["arguments"])


def _import_all() -> None:
    for name in IMPORTED:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)


if __name__ == "__main__":
    _import_all()
    gc.collect()
    gc.freeze()  # what is shared stays shared
    sys.argv = ["vrepl", *_serve(socket.socket(fileno=int(sys.argv[1])))]
    from vrepl.cli import main

    main(prog_name="vrepl")
