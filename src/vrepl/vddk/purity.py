"""No other OpenSSL may be mapped when VDDK is loaded: it brings its own libcrypto and libssl, and two do not mix."""

from __future__ import annotations

import sys
from pathlib import Path

from vrepl.errors import LibraryError

_CARRIERS = ("_hashlib", "_ssl", "cryptography.hazmat.bindings._rust", "psycopg2", "M2Crypto")
"""Extension modules that bring OpenSSL with them."""


def foreign_openssl(libdir: Path, maps: str) -> list[str]:
    """Paths of libcrypto and libssl in `/proc/self/maps` that are not VDDK's own."""
    found: dict[str, None] = {}
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6:
            continue
        path = Path(fields[5])
        if path.name.startswith(("libcrypto.", "libssl.", "libcrypto-", "libssl-")) and libdir not in path.parents:
            found[str(path)] = None
    return list(found)


def assert_pure(libdir: Path) -> None:
    """Raises LibraryError naming the library, and the module that brought it."""
    libraries = foreign_openssl(libdir, Path("/proc/self/maps").read_text())
    guilty = [name for name in _CARRIERS if name in sys.modules]
    if libraries or guilty:
        raise LibraryError(
            f"{', '.join(libraries) or 'OpenSSL'} is in this process already"
            + (f", brought by the module {', '.join(guilty)}" if guilty else "")
            + ": VDDK brings its own and cannot share a process with another",
            hint="please report this: a data mover must import nothing that uses OpenSSL",
        )
