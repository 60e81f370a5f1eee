"""An independent VDDK client in plain ctypes, for processes of their own.

It shares nothing with vrepl's wrapper, and imports neither ssl nor hashlib: the library refuses to work beside another
OpenSSL.
"""

from __future__ import annotations

import ctypes as c
import json
import mmap
import sys
import threading
from pathlib import Path
from typing import Any

LOG = c.CFUNCTYPE(None, c.c_char_p, c.c_void_p)
DONE = c.CFUNCTYPE(None, c.c_void_p, c.c_uint64)
SECTOR, GRAIN = 512, 65536
ASYNC = 25000
RETURNING_ERRORS = ["InitEx", "ConnectEx", "Open", "Close", "Disconnect", "Read", "Write", "ReadAsync", "WriteAsync"]
RETURNING_ERRORS += ["Wait", "Flush", "GetInfo", "QueryAllocatedBlocks", "PrepareForAccess", "EndAccess", "Cleanup"]


class ConnectParams(c.Structure):
    _fields_ = [
        ("vmx_spec", c.c_char_p),
        ("server", c.c_char_p),
        ("thumbprint", c.c_char_p),
        ("private", c.c_long),
        ("credential_type", c.c_uint32),
        ("credentials", c.c_char_p * 3),
        ("port", c.c_uint32),
        ("nfc_port", c.c_uint32),
        ("api_version", c.c_char_p),
        ("reserved", c.c_char * 8),
        ("state", c.c_void_p),
        ("spec", c.c_char_p * 3),
        ("spec_type", c.c_uint32),
    ]


class Block(c.Structure):
    _fields_ = [("offset", c.c_uint64), ("length", c.c_uint64)]


class BlockList(c.Structure):
    _fields_ = [("count", c.c_uint32), ("blocks", Block * 1)]


class VixError(Exception):
    """`code` is what the library returned."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def check(code: int) -> None:
    if code != 0:
        raise VixError(code)


def code_of(function: Any, *arguments: Any, **keywords: Any) -> int:
    """0, or the code with which a call failed."""
    try:
        function(*arguments, **keywords)
    except VixError as error:
        return error.code
    return 0


def buffer(data: bytes | int) -> mmap.mmap:
    """A page-aligned buffer."""
    size = data if isinstance(data, int) else len(data)
    pages = mmap.mmap(-1, size)
    if not isinstance(data, int):
        pages[:] = data
    return pages


def pointer(pages: mmap.mmap) -> Any:
    return c.cast((c.c_char * len(pages)).from_buffer(pages), c.c_void_p)


class Library:
    """One process's libvixDiskLib; `lines` holds what it logged, as (kind, text)."""

    def __init__(self, path: str, config: str | None = None, init: bool = True) -> None:
        self.c = c.CDLL(path)
        for name in RETURNING_ERRORS:
            getattr(self.c, f"VixDiskLib_{name}").restype = c.c_uint64
        self.c.VixDiskLib_GetTransportMode.restype = c.c_char_p
        self.c.VixDiskLib_GetErrorText.restype = c.c_void_p
        self.c.VixDiskLib_AllocateConnectParams.restype = c.c_void_p
        self.lines: list[tuple[str, str]] = []
        libc = c.CDLL(None)
        libc.vsnprintf.argtypes = [c.c_char_p, c.c_size_t, c.c_char_p, c.c_void_p]

        def logger(kind: str) -> Any:
            def log(format_: bytes, arguments: int) -> None:
                text = c.create_string_buffer(4096)
                libc.vsnprintf(text, 4096, format_, arguments)
                self.lines.append((kind, text.value.decode()))

            return LOG(log)

        self.callbacks = [logger(kind) for kind in ("log", "warn", "panic")]
        self.config = config.encode() if config else None
        if init:
            check(self.init(8, 0))

    def init(self, major: int, minor: int) -> int:
        return int(self.c.VixDiskLib_InitEx(c.c_uint32(major), c.c_uint32(minor), *self.callbacks, None, self.config))

    def warnings(self) -> str:
        return "\n".join(text for kind, text in self.lines if kind != "log")

    def params(
        self,
        thumbprint: str,
        moref: str = "vm-1",
        server: str = "vc.lab",
        password: str = "secret",
        port: int = 0,
        session: bool = False,
        nfc_port: int = 0,
    ) -> Any:
        params = ConnectParams.from_address(self.c.VixDiskLib_AllocateConnectParams())
        params.vmx_spec, params.server = f"moref={moref}".encode(), server.encode()
        params.thumbprint, params.port, params.nfc_port = thumbprint.encode(), port, nfc_port
        params.credential_type = 2 if session else 1
        params.credentials[0] = password.encode() if session else b"user"
        params.credentials[1] = b"user" if session else password.encode()
        return params

    def connect(
        self, params: Any, read_only: bool = False, snapshot: str | None = None, modes: str | None = None
    ) -> c.c_void_p:
        connection = c.c_void_p()
        reference = snapshot.encode() if snapshot else None
        check(
            self.c.VixDiskLib_ConnectEx(
                c.byref(params), c.c_char(int(read_only)), reference, modes and modes.encode(), c.byref(connection)
            )
        )
        return connection

    def open(self, connection: c.c_void_p, path: str, flags: int = 0) -> Handle:
        handle = c.c_void_p()
        check(self.c.VixDiskLib_Open(connection, path.encode(), c.c_uint32(flags), c.byref(handle)))
        return Handle(self, handle)


class Handle:
    def __init__(self, library: Library, handle: c.c_void_p) -> None:
        self.library, self.c, self.handle = library, library.c, handle
        self.pending: dict[int, tuple[Any, list[tuple[int, int]]]] = {}

    def mode(self) -> str:
        return str(self.c.VixDiskLib_GetTransportMode(self.handle).decode())

    def read(self, offset: int, length: int) -> bytes:
        pages = buffer(length)
        check(
            self.c.VixDiskLib_Read(
                self.handle, c.c_uint64(offset // SECTOR), c.c_uint64(length // SECTOR), pointer(pages)
            )
        )
        return pages[:]

    def write(self, offset: int, data: bytes) -> None:
        pages = buffer(data)
        check(
            self.c.VixDiskLib_Write(
                self.handle, c.c_uint64(offset // SECTOR), c.c_uint64(len(data) // SECTOR), pointer(pages)
            )
        )

    def start(self, write: bool, offset: int, pages: mmap.mmap) -> list[tuple[int, int]]:
        """An asynchronous call; (code, native thread) is appended to the list when it completes."""
        done: list[tuple[int, int]] = []
        callback = DONE(lambda _data, code: done.append((code, threading.get_native_id())))
        function = self.c.VixDiskLib_WriteAsync if write else self.c.VixDiskLib_ReadAsync
        self.pending[id(callback)] = (callback, done)
        code = function(
            self.handle, c.c_uint64(offset // SECTOR), c.c_uint64(len(pages) // SECTOR), pointer(pages), callback, None
        )
        if code != ASYNC:
            raise VixError(code)
        return done

    def wait(self) -> None:
        check(self.c.VixDiskLib_Wait(self.handle))

    def flush(self) -> None:
        check(self.c.VixDiskLib_Flush(self.handle))

    def close(self) -> None:
        check(self.c.VixDiskLib_Close(self.handle))

    def allocated(self, start: int, count: int, chunk: int) -> list[list[int]]:
        """In sectors."""
        found = c.POINTER(BlockList)()
        check(
            self.c.VixDiskLib_QueryAllocatedBlocks(
                self.handle, c.c_uint64(start), c.c_uint64(count), c.c_uint64(chunk), c.byref(found)
            )
        )
        blocks = c.cast(c.byref(found.contents, BlockList.blocks.offset), c.POINTER(Block))
        out = [[blocks[i].offset, blocks[i].length] for i in range(found.contents.count)]
        self.c.VixDiskLib_FreeBlockList(found)
        return out

    def info(self) -> dict[str, Any]:
        address = c.c_void_p()
        check(self.c.VixDiskLib_GetInfo(self.handle, c.byref(address)))
        base = address.value or 0

        def number(kind: Any, at: int) -> Any:
            return kind.from_address(base + at).value

        out = {
            "capacity": number(c.c_uint64, 24),
            "adapter": number(c.c_uint32, 32),
            "links": number(c.c_int32, 36),
            "parent": (number(c.c_char_p, 40) or b"").decode(),
            "uuid": (number(c.c_char_p, 48) or b"").decode(),
            "logical": number(c.c_uint32, 56),
            "physical": number(c.c_uint32, 60),
        }
        self.c.VixDiskLib_FreeInfo(address)
        return out


def answer(value: Any) -> None:
    """What the test gets back from this process."""
    print(json.dumps(value), flush=True)


def settings() -> dict[str, Any]:
    """What the test passed to this process."""
    return dict(json.loads(Path(sys.argv[1]).read_text()))
