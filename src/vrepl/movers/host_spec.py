"""The first line that `vrepl.proxy.host` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vrepl.stream.end import StreamEnd

STREAM = 3
"""The descriptor of a mover's end of its byte stream, where `vrepl.proxy.host` made it."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What kind of mover the process is to become. Crosses as JSON."""

    build: str
    """Which vrepl speaks (`build_id`): both ends must be the same."""
    libdir: Path | None
    stream: StreamEnd | None = None
