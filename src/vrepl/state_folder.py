"""Where on this machine vrepl keeps what belongs to its user and to no repository."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """`$XDG_STATE_HOME/vrepl`, or `~/.local/state/vrepl` (XDG Base Directory Specification); it may not exist yet."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "vrepl"
