"""Sending memory over a stream without copying it.

vmsplice(2) puts references to a buffer's pages into a pipe, splice(2) hands them on to the socket; only the other end
copies, when it receives. So a buffer must stay as it is until the other end has said that it has it: an acknowledgement
does. Where a system or a kind of socket cannot do it, bytes are copied as by any other program.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
from contextlib import suppress

from vrepl.transport.buffers import MIB

PIPE_BYTES = MIB
"""What any user may ask for (/proc/sys/fs/pipe-max-size); where a pipe stays smaller, less goes at a time."""
LEAST_BYTES = 64 * 1024
"""Less than this is copied sooner than referred to."""
CANNOT = {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOMEM, errno.ENOBUFS}
"""Errors of a system that cannot refer to pages, or not now. All others are the stream's end."""


class _Piece(ctypes.Structure):
    """struct iovec of uio.h."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Pipe:
    """A pipe that is empty between two calls."""

    def __init__(self, vmsplice: ctypes._NamedFuncPointer) -> None:
        """Raises OSError where no descriptor is left."""
        self._vmsplice = vmsplice
        self._out, self._in = os.pipe()
        with suppress(OSError):  # this user has many pipes
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def refer(self, address: int, length: int) -> int:
        """Fill the pipe with references; returns to how many bytes. Raises OSError."""
        while True:
            taken = int(self._vmsplice(self._in, ctypes.byref(_Piece(address, length)), 1, 0))
            if taken >= 0:
                return taken
            if (code := ctypes.get_errno()) != errno.EINTR:
                raise OSError(code, os.strerror(code))

    def hand_on(self, connection: socket.socket, length: int) -> int:
        """Bytes that went on to the socket, at least one. Raises OSError."""
        return os.splice(self._out, connection.fileno(), length)

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)


class PageSender:
    """Sends large writable views over one connected socket; used by one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pipe: _Pipe | None = None
        with suppress(OSError, AttributeError):  # a C library without vmsplice, or no descriptor left
            call = ctypes.CDLL(None, use_errno=True).vmsplice
            call.argtypes = [ctypes.c_int, ctypes.POINTER(_Piece), ctypes.c_ulong, ctypes.c_uint]
            call.restype = ctypes.c_ssize_t
            self._pipe = _Pipe(call)

    @property
    def copies(self) -> bool:
        """Whether it has to copy on this system."""
        return self._pipe is None

    def send(self, view: memoryview) -> None:
        """Send the view whole. Raises OSError when the stream is broken."""
        sent = 0
        if len(view) >= LEAST_BYTES:
            address = ctypes.addressof(ctypes.c_char.from_buffer(view))
            while sent < len(view) and self._pipe is not None:
                sent += self._send_pages(self._pipe, address + sent, len(view) - sent)
        if sent < len(view):
            self._connection.sendall(view[sent:])

    def _send_pages(self, pipe: _Pipe, address: int, length: int) -> int:
        """Bytes sent; ends the use of the pipe when not all that it took could be."""
        moved = 0
        try:
            taken = pipe.refer(address, length)
            while moved < taken:
                moved += pipe.hand_on(self._connection, taken - moved)
        except OSError as error:
            self.close()
            if error.errno not in CANNOT:
                raise
        return moved

    def close(self) -> None:
        """Idempotent."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()
