"""Side effects and their undo: what was done is undone in reverse order on every way out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from vrepl.errors import InterruptedRunError

logger = logging.getLogger(__name__)


class Pending:
    """One side effect that is still to be undone."""

    def __init__(self, undo: Undo, what: str, action: Callable[[], None]) -> None:
        self._undo = undo
        self.what = what
        self.action = action

    def release(self) -> None:
        """Undo it now, as the regular way out: an error is raised, and it stays to be undone. Once is enough."""
        self._undo.release(self)


class Undo:
    """A stack of undo actions for the length of a `with` block.

    What was released is forgotten. Whatever is left at the end of the block, with an error or without, is undone then;
    errors of that are logged and told to `tell`, so that none hides the error that led there or keeps another undo from
    running.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._pending: list[Pending] = []
        self._tell = tell

    def push(self, what: str, action: Callable[[], None]) -> Pending:
        """`what` says what the action does, as a message would: `remove the source snapshot`."""
        pending = Pending(self, what, action)
        self._pending.append(pending)
        return pending

    def release(self, pending: Pending) -> None:
        """Undo one now, see `Pending.release`; nothing happens if that was done already."""
        if pending in self._pending:
            pending.action()
            self._pending.remove(pending)

    def release_all(self) -> None:
        """The regular way out of a window: undo all, the latest first. The first error ends it, and the rest stays."""
        for pending in reversed(tuple(self._pending)):
            self.release(pending)

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._pending:
            pending = self._pending.pop()
            try:
                try:
                    pending.action()
                except InterruptedRunError:
                    # The operator's stop came while this was under way. It is clean-up, which a stop asks for.
                    pending.action()
            except Exception as failure:
                logger.warning("could not %s: %s", pending.what, failure)
                self._tell(f"could not {pending.what}: {failure}")
