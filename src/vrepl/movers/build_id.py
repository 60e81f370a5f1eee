"""Which vrepl this is, to the byte: two ends that speak with each other must be the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from blake3 import blake3


@cache
def build_id() -> str:
    """Of every source file of the package that runs here: 32 hexadecimal digits."""
    root = Path(__file__).parents[1]
    digest = blake3()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest(length=16)
