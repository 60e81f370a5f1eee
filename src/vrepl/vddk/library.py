"""Finding, loading and initialising libvixDiskLib: once per process, never at import."""

from __future__ import annotations

import ctypes as c
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vrepl.errors import DiskError, LibraryError
from vrepl.vddk import abi
from vrepl.vddk.codes import CODE_MASK, error_of, is_nfc_memory

SONAMES = tuple(f"libvixDiskLib.so.{major}" for major in (9, 8, 7, 6))
API_VERSIONS = ((9, 0), (8, 0), (7, 0), (6, 7), (6, 5))
"""What InitEx is told, newest first, from the number in the library's name on. It takes its own version and older ones:
a minor release may be older than its name lets one think (6.5 is libvixDiskLib.so.6 too)."""
TOO_NEW = frozenset({3, 6})
"""VixErrors of InitEx that may mean that it does not know this version (INVALID_ARG, NOT_SUPPORTED)."""
CHATTER = re.compile(r"\b(CEIP|Customer Experience Improvement|Phone ?Home)", re.IGNORECASE)
"""What VDDK says at warning level that is no news to an operator: whether it may phone home."""

LogSink = Callable[[str, str], None]
"""`(kind, text)`: kind is log, warn or panic. Called from VDDK's threads."""

_LINE = 4096


def candidates(libdir: Path) -> list[Path]:
    """Where the library may be, best first."""
    return [folder / name for folder in (libdir / "lib64", libdir) for name in SONAMES]


def find_library(libdir: Path) -> Path:
    """The newest libvixDiskLib of a VDDK folder. Raises LibraryError saying what was looked for and what is there."""
    for path in candidates(libdir):
        if path.is_file():
            return path
    looked = f"looked for {SONAMES[0]} to {SONAMES[-1]} in {libdir / 'lib64'} and {libdir}"
    if not libdir.is_dir():
        found = "the folder does not exist" if not libdir.exists() else "that is not a folder"
    else:
        near = sorted({path.name for path in (*libdir.glob("lib*/libvix*"), *libdir.glob("libvix*"))})
        inside = sorted(path.name for path in libdir.iterdir())[:8]
        found = f"found {', '.join(near)}" if near else f"the folder holds {', '.join(inside) or 'nothing'}"
    raise LibraryError(
        f"no libvixDiskLib: {looked}; {found}",
        hint="unpack VMware-vix-disklib-*.tar.gz and set `vddk.libdir` to the folder that holds its lib64; "
        'who has none takes vrepl\'s own engine, over NBD: [vddk] engine = "auto"',
    )


class Library:
    """The loaded library: its functions, typed, and one lock for everything that opens or closes.

    Open, Close, ConnectEx and Disconnect are serialised, as VMware's guide asks.
    """

    def __init__(self, path: Path) -> None:
        """Raises LibraryError with the dynamic loader's own words."""
        self.path = path
        try:
            self._library = c.CDLL(str(path))
        except OSError as error:
            said = str(error).removeprefix(f"{path}: ")
            foreign = "ELF" in said or "file too short" in said
            raise LibraryError(
                f"{path} cannot be loaded: {said}",
                hint="this is no library for Linux x86-64: a damaged file, or the archive for another platform; unpack "
                "VMware-vix-disklib-*.x86_64.tar.gz anew"
                if foreign
                else "is the folder one whole VDDK? Its lib64 holds the libraries that it needs",
            ) from error
        self._functions = abi.bind(self._library, abi.REQUIRED)
        missing = [name for name in abi.REQUIRED if name not in self._functions]
        if len(missing) == len(abi.REQUIRED):
            raise LibraryError(
                f"{path} is no libvixDiskLib: it has none of VDDK's functions",
                hint="unpack VMware-vix-disklib-*.x86_64.tar.gz and set `vddk.libdir` to the folder with its lib64",
            )
        if missing:
            raise LibraryError(
                f"{path} lacks {', '.join(f'VixDiskLib_{name}' for name in missing)}",
                hint="VDDK 6.5 or newer is needed",
            )
        self._functions |= abi.bind(self._library, abi.OPTIONAL)
        self.major = int(path.name.rsplit(".", 1)[1]) if path.name.rsplit(".", 1)[1].isdigit() else 8
        self.lock = threading.Lock()
        self.nfc_memory = False
        """Set when the log has spoken of NFC memory; whoever opens a disk clears it first."""
        self._callbacks: list[Any] = []
        self._initialised = False

    def __getitem__(self, name: str) -> Any:
        """The function `VixDiskLib_<name>`. Raises LibraryError if this VDDK does not have it."""
        try:
            return self._functions[name]
        except KeyError:
            raise LibraryError(
                f"this VDDK ({self.path}) has no VixDiskLib_{name}", hint="a newer VDDK has it"
            ) from None

    def has(self, name: str) -> bool:
        return name in self._functions

    def initialise(self, libdir: Path, config: Path | None, log: LogSink) -> None:
        """InitEx: once per process, from the main thread, after any fork. Raises LibraryError."""
        if self._initialised:
            raise LibraryError("VixDiskLib_InitEx may be called only once in a process")
        self._callbacks = [self._log_function(kind, log) for kind in ("log", "warn", "panic")]
        tried = []
        for major, minor in [one for one in API_VERSIONS if one[0] <= self.major]:
            code = self["InitEx"](
                major, minor, *self._callbacks, str(libdir).encode(), str(config).encode() if config else None
            )
            tried.append(f"{major}.{minor}")
            if code & CODE_MASK not in TOO_NEW:
                break
        if code:
            raise LibraryError(
                f"VixDiskLib_InitEx for version {', '.join(tried)} failed: {self.error_text(code)} "
                f"(VixError {code & CODE_MASK})",
                hint=f"is {libdir} a whole VDDK folder of one version?",
            )
        self._initialised = True

    def exit(self) -> None:
        """VixDiskLib_Exit, if it was initialised. Idempotent."""
        if self._initialised:
            self._initialised = False
            self["Exit"]()

    def error_text(self, code: int) -> str:
        """VDDK's words for a VixError."""
        address = self["GetErrorText"](code, None)
        if not address:
            return "unknown error"
        text = c.string_at(address).decode("utf-8", "replace")
        self["FreeErrorText"](address)
        return text

    def error(self, code: int, action: str, *, mode: str | None = None, offset: int | None = None) -> DiskError:
        """The exception that a VixError stands for."""
        return error_of(code, action, self.error_text(code), mode=mode, offset=offset, nfc_memory=self.nfc_memory)

    def check(self, code: int, action: str) -> None:
        """Raise what a VixError other than 0 stands for."""
        if code:
            raise self.error(code, action)

    def _log_function(self, kind: str, log: LogSink) -> Any:
        vsnprintf = c.CDLL(None).vsnprintf
        vsnprintf.argtypes = [c.c_char_p, c.c_size_t, c.c_void_p, c.c_void_p]

        def write(text_format: int | None, arguments: int | None) -> None:
            line = c.create_string_buffer(_LINE)
            vsnprintf(line, _LINE, text_format, arguments)
            text = line.value.decode("utf-8", "replace").rstrip()
            if is_nfc_memory(text):
                self.nfc_memory = True
            log("log" if kind == "warn" and CHATTER.search(text) else kind, text)

        return abi.LogFunction(write)
