"""The byte stream between a source mover and a target mover: framed messages with sequence numbers.

    header   kind (1), flag (1), unused (6), number (8), offset (8), length (8), payload (8): little endian, 40 bytes
    payload  so many bytes; for data either as they are or (flag COMPRESSED) zstd

From the source's side come WRITE, ZEROS, READ, ALLOCATED, FLUSH and CLOSE; each is answered by DONE with its number, in
any order: for a write, `length` is the microseconds that it took at the target; for READ and ALLOCATED the payload
is the answer; FAILED carries the error as JSON instead. HELLO opens the stream once the target's disk is open.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple

from vrepl.errors import StreamLostError

HEADER = struct.Struct("<BB6xQQQQ")
COMPRESSED = 1
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
"""Linux's numbers (asm-generic/socket.h); Python's socket module does not name them."""
SOCKET_BUFFER = 4 * 1024 * 1024


class Kind(IntEnum):
    HELLO = 1
    WRITE = 2
    ZEROS = 3
    READ = 4
    ALLOCATED = 5
    FLUSH = 6
    CLOSE = 7
    DONE = 8
    FAILED = 9


class Header(NamedTuple):
    """`number` ties an answer to its question; `offset` and `length` are bytes of the disk; `payload` of the stream."""

    kind: int
    flag: int
    number: int
    offset: int
    length: int
    payload: int


def prepare(connection: socket.socket) -> None:
    """Big socket buffers, as far as the system allows: past net.core.wmem_max only to the privileged."""
    for forced, option in ((SO_SNDBUFFORCE, socket.SO_SNDBUF), (SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            connection.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
        except PermissionError:
            connection.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)


def send(connection: socket.socket, header: Header, parts: Sequence[bytes | memoryview] = ()) -> None:
    """Send a header and what of its payload is in `parts`; the rest, if any, must follow at once. Raises OSError."""
    views = [memoryview(HEADER.pack(*header)), *(memoryview(part) for part in parts)]
    while views:
        sent = connection.sendmsg(views)
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = views[0][sent:]


def cut(connection: socket.socket) -> None:
    """End a stream that is of no use any more, for whoever waits for it at either end."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """Fill `view`. Raises StreamLostError when the other end has gone."""
    while view:
        try:
            count = connection.recv_into(view, len(view), socket.MSG_WAITALL)
        except OSError as error:
            raise StreamLostError(f"the stream to the other data mover broke: {error}") from error
        if count == 0:
            raise StreamLostError("the other data mover is gone")
        view = view[count:]


def receive_header(connection: socket.socket, scratch: bytearray) -> Header:
    """The next message's header; `scratch` holds HEADER.size bytes. Raises StreamLostError."""
    receive_into(connection, memoryview(scratch))
    return Header(*HEADER.unpack(scratch))
