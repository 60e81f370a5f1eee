"""What listings leave out because it cannot be believed, and that they say so."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vrepl.errors import RepositoryError

logger = logging.getLogger(__name__)


def warn_of(damaged: Sequence[RepositoryError]) -> None:
    """Say what is left out of a listing, and why."""
    for error in damaged:
        logger.warning("%s%s", error.message, f" ({error.hint})" if error.hint else "")


def messages(damaged: Sequence[RepositoryError]) -> list[str]:
    """What is left out, as a listing's JSON tells it."""
    return [error.message for error in damaged]
