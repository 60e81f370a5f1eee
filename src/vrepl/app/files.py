"""Files for others: whole or not at all, and readable, whatever the umask."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vrepl.errors import VreplError

READABLE = 0o644
"""Of files that other programs are to read."""


def write_readable(path: Path, content: bytes) -> None:
    """Whole or not at all: who reads the file never sees half of it. Raises VreplError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            os.fchmod(file.fileno(), READABLE)
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise VreplError(f"{path} cannot be written: {error.strerror}") from error
