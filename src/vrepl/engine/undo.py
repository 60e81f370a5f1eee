"""Side effects and their undo: what was done is undone in reverse order on every way out that did not settle it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from vrepl.errors import InterruptedRunError

logger = logging.getLogger(__name__)


class Undo:
    """A stack of undo actions for the length of a `with` block.

    `settle` runs one of them now, as the regular way out (its errors are raised). Whatever is left at the end of the
    block, with an error or without, is run then; errors of those are logged and told to `tell`, so that none hides
    the error that led there or keeps another undo from running.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._actions: list[tuple[str, Callable[[], None]]] = []
        self._tell = tell

    def push(self, what: str, action: Callable[[], None]) -> None:
        """`what` says what the action does, as a message would: `remove the source snapshot`."""
        self._actions.append((what, action))

    def settle(self, what: str) -> None:
        """Run and forget the latest action of this name; nothing happens if there is none."""
        for index in range(len(self._actions) - 1, -1, -1):
            if self._actions[index][0] == what:
                action = self._actions[index][1]
                action()
                del self._actions[index]
                return

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._actions:
            what, action = self._actions.pop()
            try:
                try:
                    action()
                except InterruptedRunError:
                    # The operator's stop came while this was under way. It is clean-up, which a stop asks for.
                    action()
            except Exception as failure:
                logger.warning("could not %s: %s", what, failure)
                self._tell(f"could not {what}: {failure}")
