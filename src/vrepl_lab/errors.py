"""What goes wrong with a lab itself (not with what is tried on it)."""

from __future__ import annotations

from vrepl.errors import VreplError


class LabError(VreplError):
    """The lab cannot be built, started, reached or changed; the hint says what to do."""
