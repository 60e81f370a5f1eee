"""The ssh server of one machine of the lab: `python -m vrepl_lab.sshd --home DIR ...`.

asyncssh's server, since a machine that tries vrepl need not have OpenSSH's. Who logs in with the lab's key gets a shell
whose home is DIR, and an environment of its own; everything that it starts ends with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh

from vrepl_lab.processes import ProcessIdentity

KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "PIP_CERT", "SSL_CERT_FILE")
"""A machine's own environment; the rest of ours is not its."""
PIECE = 256 * 1024


def environment_of(home: Path) -> dict[str, str]:
    own = {name: os.environ[name] for name in KEPT if name in os.environ}
    return own | {"HOME": str(home), "USER": "vrepl", "LOGNAME": "vrepl", "SHELL": "/bin/sh"}


async def serve_command(process: asyncssh.SSHServerProcess[bytes], home: Path) -> None:
    """One command; the end of the connection is the end of its input."""
    child = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        process.command or "true",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=home,
        env=environment_of(home),
        start_new_session=True,
    )
    feeding = asyncio.create_task(hand_on(process.stdin, child.stdin))
    try:
        await asyncio.gather(hand_on(child.stdout, process.stdout), hand_on(child.stderr, process.stderr))
        status = await child.wait()
    finally:
        feeding.cancel()
        if child.stdin is not None:
            child.stdin.close()
    process.exit(status if status >= 0 else 128 - status)


async def hand_on(source: Any, sink: Any) -> None:
    """Until the source ends, or the sink does; a child's input is then closed."""
    with suppress(OSError, asyncssh.Error):
        while data := await source.read(PIECE):
            sink.write(data)
            await sink.drain()
    if isinstance(sink, asyncio.StreamWriter):
        sink.close()


async def end_with_the_lab(simulators: list[ProcessIdentity]) -> None:
    """A machine is of no use once every simulator of its lab has ended."""
    while any(simulator.is_alive() for simulator in simulators):
        await asyncio.sleep(1.0)
    os._exit(0)


async def main(options: argparse.Namespace) -> None:
    home = Path(options.home)

    async def handle(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await serve_command(process, home)

    server: Any = await asyncssh.listen(
        options.listen,
        int(options.port),
        server_host_keys=[options.host_key],
        authorized_client_keys=options.authorized,
        process_factory=handle,
        encoding=None,
        keepalive_interval=15,
        keepalive_count_max=12,  # OpenSSH's gives up nobody unless told to (sshd_config(5), ClientAliveInterval)
    )
    watching = asyncio.create_task(
        end_with_the_lab([ProcessIdentity(**simulator) for simulator in json.loads(options.simulators)])
    )
    ready = Path(options.ready)
    part = ready.with_suffix(".part")
    part.write_text(str(server.sockets[0].getsockname()[1]))
    part.rename(ready)
    await asyncio.gather(server.wait_closed(), watching)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("home", "listen", "port", "host-key", "authorized", "ready", "simulators"):
        parser.add_argument(f"--{name}", required=True)
    asyncio.run(main(parser.parse_args()))
