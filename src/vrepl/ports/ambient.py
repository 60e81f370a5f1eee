"""Time and IDs, given from outside so that a test can give its own."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

Clock = Callable[[], dt.datetime]
"""Now, UTC-aware."""


NewId = Callable[[], str]
"""A short random ID (hex), for runs and restore points."""
