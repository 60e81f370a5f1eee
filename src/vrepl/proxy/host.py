"""Becomes a data mover, on whichever machine: reads one line, makes its end of the byte stream, and is the mover.

`python -m vrepl.proxy.host`, over ssh or here. The line is a `HostSpec`; the answer is a line as well: `{"event":
"started", "port": N}` (the port that is listened on, or 0) or `{"event": "refused", "why": …}`. Then the process turns
into `vrepl.movers.worker` with an environment of its own, and its pipes are the control process's. When the connection
ends, the pipes do, and with them the mover. TLS is done by a second process (`vrepl.proxy.relay`), since a mover that
loads VDDK must have no other OpenSSL; it ends with the mover.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from vrepl.errors import MoverError
from vrepl.movers import encoding
from vrepl.movers.build_id import build_id
from vrepl.movers.environment import mover_environment
from vrepl.movers.host_spec import STREAM, HostSpec
from vrepl.stream.end import StreamEnd

LONGEST_LINE = 1 << 20


def main() -> None:
    """Raises nothing: what stands in the way is said on standard output."""
    try:
        spec = _spec()
        port = _stream(spec.stream) if spec.stream is not None else 0
    except (MoverError, OSError) as error:
        why = error.message if isinstance(error, MoverError) else str(error)
        _say({"event": "refused", "why": why})
        sys.exit(1)
    _say({"event": "started", "port": port})
    environment = mover_environment(spec.libdir, os.environ)
    command = [sys.executable, "-m", "vrepl.movers.worker", str(os.getppid())]
    os.execve(sys.executable, command, environment)  # noqa: S606


def _spec() -> HostSpec:
    line = _first_line()
    try:
        value = json.loads(line)
    except ValueError:
        raise MoverError("what arrived on standard input is no order for a data mover") from None
    if value.get("build") != build_id():
        raise MoverError("another vrepl is installed here than the one that asks: `vrepl proxy install` brings it")
    return encoding.decode(HostSpec, value)


def _first_line() -> bytes:
    """Byte by byte: what follows belongs to the mover."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
        byte = os.read(0, 1)
        if not byte:
            sys.exit(1)
        line += byte
    return bytes(line)


def _stream(end: StreamEnd) -> int:
    """Start the relay, leave the mover's end as descriptor STREAM; the port that is listened on, or 0."""
    listener = _listen(end) if end.address is None else None
    near, far = socket.socketpair()
    if os.fork() == 0:
        from vrepl.proxy.relay import relay  # it alone loads OpenSSL

        near.close()
        os.close(0)
        os.close(1)
        relay(end, listener, far)
        os._exit(0)
    far.close()
    port = 0
    if listener is not None:
        port = listener.getsockname()[1]
        listener.close()
    if near.fileno() == STREAM:
        near.set_inheritable(True)
    else:
        os.dup2(near.fileno(), STREAM, inheritable=True)
        near.close()
    near.detach()
    return port


def _listen(end: StreamEnd) -> socket.socket:
    refusal: OSError | None = None
    for port in range(end.port, max(end.last_port, end.port) + 1):
        try:
            return socket.create_server((end.bind, port), backlog=1, reuse_port=False)
        except OSError as error:
            refusal = error
    where = f" at {end.bind}" if end.bind else ""
    raise MoverError(f"no port from {end.port} to {end.last_port} can be listened on{where}: {refusal}")


def _say(message: dict[str, object]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
