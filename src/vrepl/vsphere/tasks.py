"""Waiting for tasks, and starting them again where that is right. What is asked meanwhile: `vsphere.task_collector`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from vrepl.errors import (
    DiskLockedError,
    InterruptedRunError,
    TransientVsphereError,
    VreplError,
    VsphereError,
    stopped_on_request,
)
from vrepl.vsphere import collector
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.faults import OutcomeUnknownError, error_of
from vrepl.vsphere.session import Session
from vrepl.vsphere.task_collector import ENDED, TaskCollector, VmBeside

log = logging.getLogger(__name__)

GRACE = 15.0
"""Seconds that clean-up waits for a task once the operator has asked to stop."""

T = TypeVar("T")


class StillRunningError(VsphereError):
    """A task has not ended in its time; it goes on in vSphere."""


class Tasks:
    """Starts tasks, waits for them, and starts them again where that is right. Thread-safe."""

    def __init__(self, session: Session, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._monotonic = monotonic
        self._collector = TaskCollector(session, monotonic=monotonic)
        self._closed = False
        self._grace: float | None = None

    def run(
        self,
        start: Callable[[], Any],
        *,
        what: str,
        recover: Callable[[], T | None] | None = None,
        within: float | None = None,
        beside: VmBeside | None = None,
    ) -> Any | T:
        """Start a task, wait for its end, return its result.

        A task that fails in a way that passes is started again. `recover` is for tasks that make something: it is
        asked after a lost connection, and after any passing failure, whether the thing is there all the same, and
        returns it or None. `beside` is told how its VM stands once the task has ended. Raises the task's error, or
        VsphereError when the site's task timeout has passed; a task is cancelled, as far as vSphere lets it, that has
        not ended `within` so many seconds.
        """
        tried = False
        task_error: VreplError | None = None

        def once() -> Any:
            nonlocal tried, task_error
            if tried and recover is not None:
                there = recover()
                if there is not None:
                    return there
            tried = True
            task = start()
            try:
                values = self._until_ended(task, what, within, beside)
            except StillRunningError:
                if within is not None:
                    with suppress(VreplError):
                        task.CancelTask()
                raise
            try:
                return _result(values, what)
            except VreplError as error:
                task_error = error
                raise

        def again(error: VreplError) -> bool:
            # Calls were tried again already, below; here it is about what tasks ended with.
            passing = isinstance(error, TransientVsphereError) or (
                # A dead client's lock lasts longer than anybody wants to wait who asked to stop.
                isinstance(error, DiskLockedError) and self._grace is None
            )
            return not self._closed and (isinstance(error, OutcomeUnknownError) or (error is task_error and passing))

        return self._session.retrier.run(once, what=what, again=again)

    def wait(self, task: Any, *, what: str) -> Any:
        """Until a task that runs already has ended; its result. Raises its error."""
        return _result(self._until_ended(task, what), what)

    def wait_for_running(self, entity: Any) -> None:
        """Wait for the tasks that still run on an entity, whoever started them and however they end."""
        for task in still_running(self._session, entity):
            try:
                self.wait(task, what=f"wait for {ref_of(task)} of {ref_of(entity)}")
            except (InterruptedRunError, StillRunningError):
                raise
            except VreplError as error:
                log.info("a task that was still running failed: %s", error)

    def hurry(self) -> None:
        """The operator asked to stop: who waits gets InterruptedRunError; clean-up may wait GRACE seconds a task."""
        self._grace = GRACE
        self._collector.fail_all(stopped_on_request)

    def close(self) -> None:
        """Everybody who waits gets InterruptedRunError at once; the tasks themselves go on in vSphere."""
        self._closed = True
        self._collector.close()
        self._collector.fail_all(lambda: InterruptedRunError("stopped while a task of vSphere was running"))

    def _until_ended(
        self, task: Any, what: str, within: float | None = None, beside: VmBeside | None = None
    ) -> dict[str, Any]:
        """What was said last of the task's state, error and result."""
        limit = min(self._session.settings.task_timeout, within or math.inf)
        if self._grace is not None:
            limit = min(limit, self._grace)
        until = self._monotonic() + limit
        waiting = self._collector.follow(task, beside)
        try:
            # In short waits: only then does a Ctrl-C reach a waiting main thread on every platform.
            while not waiting.ended.wait(min(1.0, max(0.0, until - self._monotonic()))):
                if self._monotonic() >= until:
                    raise StillRunningError(
                        f"{what}: task {ref_of(task)} has not ended within {limit:.0f} s",
                        fault="Timedout",
                        hint="it goes on in vSphere: look at it there; the next run looks after what it leaves "
                        "(task_timeout_minutes of the site is the limit of a run that nobody stopped)",
                    )
        finally:
            self._collector.leave(waiting)
        if waiting.failure is not None:
            raise waiting.failure
        return waiting.values


def _result(values: dict[str, Any], what: str) -> Any:
    """The result of a task that has ended, or its error."""
    if str(values.get("info.state")) == "success":
        return values.get("info.result")
    failure = values.get("info.error")
    if failure is None:
        raise VsphereError(f"{what}: the task failed and vSphere does not say why")
    # A task's error is the fault itself, or a fault with its localised text.
    fault = getattr(failure, "fault", None) or failure
    raise error_of(fault, doing=what, message=getattr(failure, "localizedMessage", None))


def still_running(session: Session, entity: Any) -> list[Any]:
    """Tasks of an entity that have not ended; none if the entity is gone."""
    # The entity's own property comes too: no answer at all would look like a session that has ended.
    found = collector.along(session, entity, "recentTask", {vim.Task: ["info.state"], type(entity): ["name"]})
    return running_among(found)


def running_among(found: Sequence[collector.Found]) -> list[Any]:
    """Tasks that have not ended, of what a collector found."""
    return [one.object for one in found if isinstance(one.object, vim.Task) and str(one.get("info.state")) not in ENDED]
