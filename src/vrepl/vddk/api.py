"""What vrepl's disks use of a VDDK handle, as a Protocol: the real one is `handles.Handle`, tests bring their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vrepl.errors import VreplError
from vrepl.extents import Extent
from vrepl.vddk.handles import DiskInfo


class DiskHandle(Protocol):
    """Offsets and lengths in bytes; every method raises DiskError."""

    mode: str

    def info(self) -> DiskInfo: ...

    def read(self, offset: int, length: int, address: int) -> None: ...

    def write(self, offset: int, length: int, address: int) -> None: ...

    def read_async(self, offset: int, length: int, address: int, done: Callable[[VreplError | None], None]) -> None: ...

    def write_async(
        self, offset: int, length: int, address: int, done: Callable[[VreplError | None], None]
    ) -> None: ...

    def wait(self) -> None: ...

    def flush(self) -> None: ...

    def allocated(self, start: int, length: int, chunk: int) -> list[Extent]: ...

    def close(self) -> None: ...
