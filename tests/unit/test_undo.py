"""What was done is undone on every way out, in reverse order, whatever else goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vrepl.engine.undo import Undo
from vrepl.errors import InterruptedRunError, VsphereError


class Action:
    """Raises each of `errors` in turn, then works."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


def fail(told: list[str], *actions: tuple[str, Callable[[], None]]) -> None:
    with Undo(told.append) as undo:
        for what, action in actions:
            undo.push(what, action)
        raise VsphereError("the run failed")


def test_a_stop_that_falls_into_clean_up_does_not_keep_it_from_being_done() -> None:
    told: list[str] = []
    action = Action(InterruptedRunError("stopped on request"))
    with pytest.raises(VsphereError, match="the run failed"):
        fail(told, ("remove the source snapshot", action))
    assert action.calls == 2
    assert told == []


def test_a_stop_that_falls_into_the_regular_way_out_does_not_either() -> None:
    told: list[str] = []
    action = Action(InterruptedRunError("stopped on request"))

    def leave() -> None:
        with Undo(told.append) as undo:
            undo.push("remove the source snapshot", action).release()

    with pytest.raises(InterruptedRunError):
        leave()
    assert action.calls == 2
    assert told == []


def test_an_undo_that_fails_hides_no_error_and_keeps_no_other_from_running() -> None:
    told: list[str] = []
    order: list[str] = []
    with pytest.raises(VsphereError, match="the run failed"):
        fail(
            told,
            ("first", lambda: order.append("first")),
            ("second", Action(VsphereError("no"))),
            ("third", lambda: order.append("third")),
        )
    assert order == ["third", "first"]
    assert told == ["could not second: no"]


def test_what_was_released_is_not_undone_again() -> None:
    told: list[str] = []
    first, second = Action(), Action()
    with Undo(told.append) as undo:
        undo.push("the same words", first)
        token = undo.push("the same words", second)
        token.release()
        token.release()
        assert (first.calls, second.calls) == (0, 1)
    assert (first.calls, second.calls) == (1, 1)
    assert told == []


def test_a_window_that_closes_with_an_error_still_undoes_the_rest_and_raises() -> None:
    told: list[str] = []
    order: list[str] = []

    def close() -> None:
        with Undo(told.append) as undo:
            undo.push("first", lambda: order.append("first"))
            undo.push("second", Action(VsphereError("no")))
            undo.push("third", lambda: order.append("third"))
            undo.release_all()

    with pytest.raises(VsphereError, match="no"):
        close()
    assert order == ["third", "first"]
    assert told == [], "the second try went well"
