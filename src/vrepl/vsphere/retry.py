"""Retries: the one place that decides how often and how long to wait (what is transient, `faults` decides)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from vrepl.errors import VreplError

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` in all; waits grow from `first_wait` seconds by doubling, up to `longest_wait` seconds."""

    attempts: int = 6
    first_wait: float = 0.5
    longest_wait: float = 20.0


class Retrier:
    """Runs something again while it fails in a way that passes, with growing waits, and says so."""

    def __init__(self, policy: RetryPolicy, sleep: Callable[[float], None]) -> None:
        self._policy = policy
        self._sleep = sleep

    def run(
        self,
        action: Callable[[], T],
        *,
        what: str,
        again: Callable[[VreplError], bool] = lambda error: error.retryable,
    ) -> T:
        """`action()`; after an error for which `again(error)` holds, wait and run it again.

        The last error is raised as it came. Anything that is no VreplError passes through at once.
        """

        def say(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            wait = state.next_action.sleep if state.next_action else 0.0
            log.warning(
                "retrying %s in %.1f s (attempt %d of %d): %s",
                what,
                wait,
                state.attempt_number + 1,
                self._policy.attempts,
                str(error).removeprefix(f"{what}: ").removesuffix(f" ({what})"),
            )

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._policy.attempts),
            wait=tenacity.wait_exponential(multiplier=self._policy.first_wait, max=self._policy.longest_wait),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, VreplError) and again(error)),
            sleep=self._sleep,
            before_sleep=say,
            reraise=True,
        )
        return retrying(action)
