"""Owning objects over VDDK's connections and disk handles. Each closes once, whatever happens; one thread owns each."""

from __future__ import annotations

import ctypes as c
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self

from vrepl.errors import DiskError, VreplError
from vrepl.extents import SECTOR, Extent
from vrepl.ports import SiteConnection
from vrepl.vddk import abi
from vrepl.vddk.codes import error_of
from vrepl.vddk.library import Library

IDENTITY_LENGTH = 50
"""Characters that PrepareForAccess takes as identity."""

Done = Callable[[VreplError | None], None]


_THREAD = threading.local()


def keep_thread_state() -> None:
    """Let Python remember the calling thread of VDDK's from one callback to the next.

    Otherwise ctypes makes a thread state for each callback and destroys it afterwards, which maps and unmaps memory and
    so interrupts the other processors: more than the callback itself costs. What is kept ends with the process.
    (Python/pystate.c: PyGILState_Ensure counts, PyGILState_Release destroys the state when the count is back at zero.)
    """
    c.pythonapi.PyGILState_Ensure()


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """What GetInfo says; `capacity` is bytes."""

    capacity: int
    adapter_type: int
    links: int
    uuid: str


@contextmanager
def connect_params(library: Library, site: SiteConnection, vm_ref: str) -> Iterator[abi.ConnectParams]:
    """Parameters for one VM, allocated by the library where it wants that (VDDK >= 6.7), freed afterwards."""
    allocated = library["AllocateConnectParams"]() if library.has("AllocateConnectParams") else None
    params: abi.ConnectParams = allocated.contents if allocated else abi.ConnectParams()
    keep = [
        c.create_string_buffer(text.encode())
        for text in (f"moref={vm_ref}", site.server, site.sha1_thumbprint, site.user, site.password)
    ]
    vm, server, thumbprint, user, password = (c.cast(text, c.c_char_p) for text in keep)
    params.vmx_spec, params.server_name, params.thumbprint = vm, server, thumbprint
    params.credential_type = abi.CREDENTIALS_UID
    params.credentials.uid.user_name, params.credentials.uid.password = user, password
    params.port, params.nfc_host_port = site.port, site.nfc_port
    params.spec_type = abi.SPEC_VMX
    try:
        yield params
    finally:
        c.memset(keep[-1], 0, len(keep[-1]))
        if allocated:
            params.vmx_spec = params.server_name = params.thumbprint = None
            params.credentials.uid.user_name = params.credentials.uid.password = None
            library["FreeConnectParams"](allocated)


class Connection:
    """A connection for one VM, for reading or for reading and writing. Close what was opened on it first."""

    def __init__(
        self,
        library: Library,
        site: SiteConnection,
        vm_ref: str,
        snapshot_ref: str | None,
        modes: str,
        *,
        read_only: bool,
    ) -> None:
        """`modes`: colon-separated, tried in this order. Raises DiskError."""
        self.library = library
        self._connection: c.c_void_p | None = None
        connection = c.c_void_p()
        with ExitStack() as stack:
            params = stack.enter_context(connect_params(library, site, vm_ref))
            with library.lock:
                code = library["ConnectEx"](
                    c.byref(params),
                    bytes([read_only]),
                    snapshot_ref.encode() if snapshot_ref else None,
                    modes.encode() if modes else None,
                    c.byref(connection),
                )
            if code:
                raise library.error(code, f"connecting to {site.server} for {vm_ref}")
            self._params = stack.pop_all()  # VDDK may look at them as long as the connection lives
        self._connection = connection

    def open(self, path: str, *, read_only: bool, flags: int = 0) -> Handle:
        """Open one disk; the calling thread owns the handle. Raises DiskError."""
        if self._connection is None:
            raise AssertionError("the connection is closed")
        return Handle(self.library, self._connection, path, flags | (abi.OPEN_READ_ONLY if read_only else 0))

    def close(self) -> None:
        """Disconnect. Idempotent; a failure is of no consequence any more and is not raised."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with self.library.lock:
                self.library["Disconnect"](connection)
            self._params.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Handle:
    """An open disk. Synchronous and asynchronous calls must not be mixed on one (VixError 26000)."""

    def __init__(self, library: Library, connection: c.c_void_p, path: str, flags: int) -> None:
        self.library = library
        self.path = path
        self._handle: c.c_void_p | None = None
        handle = c.c_void_p()
        with library.lock:
            library.nfc_memory = False
            code = library["Open"](connection, path.encode(), flags, c.byref(handle))
        if code:
            raise library.error(code, f"opening {path}")
        self._handle = handle
        self.mode = (library["GetTransportMode"](handle) or b"").decode() or "unknown"
        self._read, self._write = library["Read"], library["Write"]
        self._read_async, self._write_async = library["ReadAsync"], library["WriteAsync"]
        self._ids = count(1)
        self._pending: dict[int, tuple[int, bool, Done]] = {}
        self._completion = abi.CompletionFunction(self._completed_elsewhere)

    def info(self) -> DiskInfo:
        """Raises DiskError."""
        pointer = c.POINTER(abi.Info)()
        self._check(self.library["GetInfo"](self._handle, c.byref(pointer)), "asking about")
        try:
            info = pointer.contents
            return DiskInfo(
                capacity=info.capacity * SECTOR,
                adapter_type=info.adapter_type,
                links=info.links,
                uuid=(info.uuid or b"").decode("utf-8", "replace"),
            )
        finally:
            self.library["FreeInfo"](pointer)

    def read(self, offset: int, length: int, address: int) -> None:
        """Synchronously, `length` bytes at `offset` to memory at `address`. Raises DiskError."""
        code = self._read(self._handle, offset // SECTOR, length // SECTOR, address)
        if code:
            raise self._error(code, "reading", offset)

    def write(self, offset: int, length: int, address: int) -> None:
        """Synchronously. Raises DiskError."""
        code = self._write(self._handle, offset // SECTOR, length // SECTOR, address)
        if code:
            raise self._error(code, "writing", offset)

    def read_async(self, offset: int, length: int, address: int, done: Done) -> None:
        """`done` is called once, from a thread of VDDK's."""
        number = next(self._ids)
        self._pending[number] = (offset, False, done)
        code = self._read_async(self._handle, offset // SECTOR, length // SECTOR, address, self._completion, number)
        if code != abi.VIX_ASYNC:
            self._completed(number, code)

    def write_async(self, offset: int, length: int, address: int, done: Done) -> None:
        """`done` is called once, from a thread of VDDK's; the memory must stay as it is until then."""
        number = next(self._ids)
        self._pending[number] = (offset, True, done)
        code = self._write_async(self._handle, offset // SECTOR, length // SECTOR, address, self._completion, number)
        if code != abi.VIX_ASYNC:
            self._completed(number, code)

    def wait(self) -> None:
        """Return when every asynchronous call has completed. Raises DiskError."""
        self._check(self.library["Wait"](self._handle), "waiting for writes to")

    def flush(self) -> None:
        """Raises DiskError."""
        self._check(self.library["Flush"](self._handle), "flushing")

    def allocated(self, start: int, length: int, chunk: int) -> list[Extent]:
        """Allocated blocks, ascending; all in bytes, `start` and `length` multiples of `chunk`.

        Raises DiskError, and LibraryError where this VDDK cannot tell.
        """
        pointer = c.POINTER(abi.BlockList)()
        code = self.library["QueryAllocatedBlocks"](
            self._handle, start // SECTOR, length // SECTOR, chunk // SECTOR, c.byref(pointer)
        )
        if code:
            raise self._error(code, "asking what is allocated of", start)
        try:
            listing = pointer.contents
            first = c.addressof(listing) + abi.BlockList.blocks.offset
            numbers: Any = (c.c_uint64 * (2 * listing.count)).from_address(first) if listing.count else ()
            return [
                Extent(offset * SECTOR, sectors * SECTOR)
                for offset, sectors in zip(numbers[0::2], numbers[1::2], strict=True)
            ]
        finally:
            self.library["FreeBlockList"](pointer)

    def close(self) -> None:
        """Idempotent. Raises DiskError when what was written may not have been kept."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        with self.library.lock:
            code = self.library["Close"](handle)
        if code:
            raise self._error(code, "closing", None)

    def _completed_elsewhere(self, number: int, code: int) -> None:
        """VDDK's completion, on a thread of its own (or, over hotadd and san, on the caller's)."""
        if not getattr(_THREAD, "is_known", False):
            keep_thread_state()
            _THREAD.is_known = True
        self._completed(number, code)

    def _completed(self, number: int, code: int) -> None:
        entry = self._pending.pop(number, None)
        if entry is None:  # completed at once, and said so twice
            return
        offset, writing, done = entry
        done(None if not code else self._error(code, "writing" if writing else "reading", offset))

    def _check(self, code: int, action: str) -> None:
        if code:
            raise self._error(code, action, None)

    def _error(self, code: int, action: str, offset: int | None) -> DiskError:
        return error_of(
            code,
            f"{action} {self.path}",
            self.library.error_text(code),
            mode=self.mode,
            offset=offset,
            nfc_memory=self.library.nfc_memory,
        )


def prepare_for_access(library: Library, site: SiteConnection, vm_ref: str, identity: str) -> None:
    """Keep the VM from being relocated. Raises DiskError."""
    _access(library, "PrepareForAccess", site, vm_ref, identity)


def end_access(library: Library, site: SiteConnection, vm_ref: str, identity: str) -> None:
    """Let the VM be relocated again. Raises DiskError."""
    _access(library, "EndAccess", site, vm_ref, identity)


def _access(library: Library, function: str, site: SiteConnection, vm_ref: str, identity: str) -> None:
    with connect_params(library, site, vm_ref) as params, library.lock:
        code = library[function](c.byref(params), identity[:IDENTITY_LENGTH].encode())
    library.check(code, f"{function} for {vm_ref}")


def cleanup(library: Library, site: SiteConnection, vm_ref: str) -> tuple[int, int]:
    """Detach what HotAdd left; `(cleaned, remaining)` disks. Raises DiskError."""
    cleaned, remaining = c.c_uint32(), c.c_uint32()
    with connect_params(library, site, vm_ref) as params, library.lock:
        code = library["Cleanup"](c.byref(params), c.byref(cleaned), c.byref(remaining))
    library.check(code, f"cleaning up after {vm_ref}")
    return cleaned.value, remaining.value
