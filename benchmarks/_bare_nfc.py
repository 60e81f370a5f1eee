"""The limit of NBD by vrepl itself: requests and bytes alone, over the same hosts. A process of its own.

`_bare_nfc.py ARGUMENTS`: one thread asks for blocks and receives them, one sends them on and takes the answers; no
digests, zero detection, checkpoints or log, nothing read back. Sessions are begun by vrepl's own dialogue.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

from vrepl.model import TransportMode
from vrepl.nfc import authd, frames
from vrepl.nfc.channel import Channel
from vrepl.ports import NfcTicket

BLOCK = 1 << 20


class Bare:
    """One disk over a blocking connection."""

    def __init__(self, ticket: NfcTicket, mode: TransportMode, path: str, *, writable: bool, depth: int) -> None:
        self.channel = authd.connect(ticket, mode)
        self._number = 0
        self._head = memoryview(bytearray(16))
        self._payload = memoryview(bytearray(64))
        self.ask(frames.OPEN_SESSION, frames.open_session(BLOCK, depth))
        name = path.encode()
        self.handle = frames.decode_opened(
            self.ask(frames.OPEN_FILE, frames.open_file(name, writable=writable), name)
        ).handle

    def send(self, kind: int, payload: bytes, data: bytes | memoryview = b"") -> None:
        self.channel.send(frames.encode_record(kind, self._number, payload))
        if data:
            self.channel.send(data)  # type: ignore[arg-type]
        self._number += 1

    def ask(self, kind: int, payload: bytes, data: bytes = b"") -> bytes:
        self.send(kind, payload, data)
        return bytes(self.receive())

    def receive(self) -> memoryview:
        """The next record's payload."""
        fill(self.channel, self._head)
        _, kind, size, _ = struct.unpack("<IIII", self._head)
        if kind == frames.ERROR:
            raise SystemExit("the host refuses")
        fill(self.channel, self._payload[:size])
        return self._payload[:size]

    def close(self) -> None:
        self.ask(frames.CLOSE_FILE, frames.close_file(self.handle))
        self.ask(frames.CLOSE_SESSION, frames.CLOSE_SESSION_PAYLOAD)
        self.channel.close()


def fill(channel: Channel, view: memoryview) -> None:
    connection = channel._socket
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise SystemExit("the host closed the connection")
        view = view[count:]


def main(arguments: dict[str, object]) -> dict[str, float]:
    mode, depth, capacity = (
        TransportMode(str(arguments["mode"])),
        int(str(arguments["depth"])),
        int(str(arguments["capacity"])),
    )
    tickets = [NfcTicket(**ticket) for ticket in arguments["tickets"]]  # type: ignore[attr-defined]
    began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    source = Bare(tickets[0], mode, str(arguments["source"]), writable=False, depth=depth)
    target = Bare(tickets[1], mode, str(arguments["target"]), writable=True, depth=depth)
    free: SimpleQueue[memoryview] = SimpleQueue()
    full: SimpleQueue[tuple[int, memoryview]] = SimpleQueue()
    for _ in range(2 * depth):
        free.put(memoryview(bytearray(BLOCK)))
    blocks = capacity // BLOCK

    def write() -> None:
        flying = 0
        for _ in range(blocks):
            offset, buffer = full.get()
            target.send(frames.IO, frames.write_fragment(target.handle, offset, BLOCK, 0, BLOCK), buffer)
            free.put(buffer)
            flying += 1
            if flying == depth:
                target.receive()
                flying -= 1
        for _ in range(flying):
            target.receive()

    writer = threading.Thread(target=write)
    writer.start()
    for ahead in range(min(depth, blocks)):
        source.send(frames.IO, frames.read_request(source.handle, ahead * BLOCK, BLOCK))
    for number in range(blocks):
        fragment = frames.decode_fragment(source.receive())
        buffer = free.get()
        fill(source.channel, buffer[fragment.start : fragment.start + fragment.length])
        if number + depth < blocks:
            source.send(frames.IO, frames.read_request(source.handle, (number + depth) * BLOCK, BLOCK))
        full.put((fragment.offset, buffer))
    writer.join()
    source.close()
    target.close()
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
