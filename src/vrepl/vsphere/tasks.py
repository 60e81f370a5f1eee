"""Waiting for tasks: one WaitForUpdatesEx serves every task of the site that anybody waits for.

A ListView holds the tasks that are waited for, a filter of a property collector of our own follows it, and one thread
asks for updates. All three live as long as the login that made them, so a new login makes them anew; the state of every
task comes again then, and nothing is lost.
"""

from __future__ import annotations

import logging
import math
import threading
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
from vrepl.vsphere.api import ref_of, vim, vmodl
from vrepl.vsphere.faults import OutcomeUnknownError, error_of
from vrepl.vsphere.session import Session

log = logging.getLogger(__name__)

LONGEST_ASK = 60
"""Seconds that one WaitForUpdatesEx may stay unanswered; below the HTTP timeout, so that a dead connection shows."""

GRACE = 15.0
"""Seconds that clean-up waits for a task once the operator has asked to stop."""

_ENDED = frozenset({"success", "error"})
_PATHS = ["info.state", "info.error", "info.result"]

T = TypeVar("T")


class StillRunningError(VsphereError):
    """A task has not ended in its time; it goes on in vSphere."""


class _Wait:
    """Somebody waits for this task."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.values: dict[str, Any] = {}
        self.ended = threading.Event()
        self.failure: VreplError | None = None

    def update(self, changes: dict[str, Any]) -> None:
        self.values.update(changes)
        if str(self.values.get("info.state")) in _ENDED:
            self.ended.set()

    def fail(self, error: VreplError) -> None:
        self.failure = error
        self.ended.set()


class Tasks:
    """Starts tasks, waits for them, and starts them again where that is right. Thread-safe."""

    def __init__(self, session: Session, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._pending: dict[str, _Wait] = {}
        self._done: list[Any] = []
        self._thread: threading.Thread | None = None
        self._view: Any = None
        self._collector: Any = None
        self._view_generation = 0
        self._version = ""
        self._work = threading.Condition(self._lock)
        self._closed = False
        self._grace: float | None = None

    def run(
        self,
        start: Callable[[], Any],
        *,
        what: str,
        recover: Callable[[], T | None] | None = None,
        within: float | None = None,
    ) -> Any | T:
        """Start a task, wait for its end, return its result.

        A task that fails in a way that passes is started again. `recover` is for tasks that make something: it is
        asked after a lost connection, and after any passing failure, whether the thing is there all the same, and
        returns it or None. Raises the task's error, or VsphereError when the site's task timeout has passed; a task is
        cancelled, as far as vSphere lets it, that has not ended `within` so many seconds.
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
                values = self._until_ended(task, what, within)
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
        with self._lock:
            self._grace = GRACE
            waiting = list(self._pending.values())
        for one in waiting:
            one.fail(stopped_on_request())

    def close(self) -> None:
        """Everybody who waits gets InterruptedRunError at once; the tasks themselves go on in vSphere."""
        with self._lock:
            self._closed = True
            waiting = list(self._pending.values())
            self._work.notify_all()
        for one in waiting:
            one.fail(InterruptedRunError("stopped while a task of vSphere was running"))

    # --- the waiter

    def _until_ended(self, task: Any, what: str, within: float | None = None) -> dict[str, Any]:
        """The last values of the task's _PATHS."""
        waiting = _Wait(task)
        limit = min(self._session.settings.task_timeout, within or math.inf)
        if self._grace is not None:
            limit = min(limit, self._grace)
        until = self._monotonic() + limit
        try:
            self._watch(waiting)
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
            with self._lock:
                self._pending.pop(ref_of(task), None)
                self._done.append(task)
        if waiting.failure is not None:
            raise waiting.failure
        return waiting.values

    def _watch(self, waiting: _Wait) -> None:
        with self._lock:
            if self._closed:
                raise InterruptedRunError("stopped")
            self._pending[ref_of(waiting.task)] = waiting
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name=f"tasks-{self._session.settings.name}", daemon=True
                )
                self._thread.start()
            view, done = self._view, self._done
            if view is not None:
                self._done = []
            self._work.notify_all()
        if view is None:
            return  # the waiter makes the view, with this task in it
        try:
            gone = view.ModifyListView(add=[waiting.task], remove=done)
            if ref_of(waiting.task) in {ref_of(one) for one in gone or []} - {ref_of(one) for one in done}:
                waiting.fail(_vanished(waiting.task))
        except VreplError as error:
            with self._lock:
                current = self._view is view and self._session.generation == self._view_generation
            if current:
                raise
            # A view made since holds this task, for it was among the pending ones already.
            log.debug("the view of tasks has gone: %s", error)  # the waiter meets the same and makes a new one

    def _serve(self) -> None:
        losses = 0
        while True:
            with self._lock:
                while not self._pending and not self._closed:
                    self._work.wait()
                if self._closed:
                    return
            try:
                self._follow()
                losses = 0
            except VreplError as error:
                # A stop interrupts whoever pauses between tries, but clean-up still waits for its tasks.
                lost = (
                    isinstance(error, OutcomeUnknownError | InterruptedRunError)
                    or self._session.generation != self._view_generation
                )
                losses += 1
                if lost and losses < self._session.settings.retry.attempts and not self._session.closed:
                    # News that got lost are not sent again, but a new view tells the state of every task.
                    log.warning("retrying: waiting for tasks: %s", error)
                    with self._lock:
                        self._view = None
                    continue
                with self._lock:
                    waiting = self._give_up()
                for one in waiting:
                    one.fail(error)
            except Exception as error:
                # Nobody may wait for ever because this thread has died.
                log.exception("%s: waiting for tasks", self._session.settings.name)
                with self._lock:
                    waiting = self._give_up()
                for one in waiting:
                    one.fail(VsphereError(f"waiting for tasks failed: {error!r}"))

    def _give_up(self) -> list[_Wait]:
        """Everybody who waits, to be told that it is in vain; the lock is held."""
        waiting = list(self._pending.values())
        self._pending.clear()
        self._view = None
        return waiting

    def _follow(self) -> None:
        """One question for updates, and what it brings."""
        if self._view is None or self._session.generation != self._view_generation:
            self._set_up()
        options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=LONGEST_ASK)
        news = self._collector.WaitForUpdatesEx(version=self._version, options=options)
        if news is None:
            return
        self._version = news.version
        for update in news.filterSet or []:
            for missing in update.missingSet or []:
                self._fail_one(missing.obj)
            for item in update.objectSet or []:
                with self._lock:
                    waiting = self._pending.get(ref_of(item.obj))
                if waiting is None:
                    continue
                if str(item.kind) == "leave":
                    waiting.fail(_vanished(item.obj))
                else:
                    waiting.update({change.name: change.val for change in item.changeSet or []})
                if waiting.ended.is_set():
                    # Here and not where it is waited for: without this task there may be nothing left to ask for.
                    with self._lock:
                        self._pending.pop(ref_of(item.obj), None)

    def _set_up(self) -> None:
        query = vmodl.query.PropertyCollector
        content = self._session.content
        generation = self._session.generation
        if self._collector is not None and generation == self._view_generation:
            collector.quietly(self._collector.DestroyPropertyCollector)
        own = content.propertyCollector.CreatePropertyCollector()
        view = content.viewManager.CreateListView()
        walk = query.TraversalSpec(name="tasks", path="view", skip=False, type=vim.view.ListView)
        spec = query.FilterSpec(
            objectSet=[query.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
            propSet=[query.PropertySpec(type=vim.Task, all=False, pathSet=_PATHS)],
            reportMissingObjectsInResults=True,
        )
        own.CreateFilter(spec=spec, partialUpdates=False)
        with self._lock:
            # From here on, new waiters add their tasks themselves; a task that is added twice stands in it once.
            self._collector, self._view, self._view_generation, self._version = own, view, generation, ""
            self._done = []
            tasks = [waiting.task for waiting in self._pending.values()]
        for task in list(view.ModifyListView(add=tasks) or []):
            self._fail_one(task)

    def _fail_one(self, task: Any) -> None:
        """This task is gone."""
        with self._lock:
            lost = self._pending.pop(ref_of(task), None)
        if lost is not None:
            lost.fail(_vanished(task))


def _vanished(task: Any) -> VreplError:
    return OutcomeUnknownError(
        f"task {ref_of(task)} is gone from vSphere before its end was seen", hint="vCenter forgets tasks after minutes"
    )


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
    return [
        one.object for one in found if isinstance(one.object, vim.Task) and str(one.get("info.state")) not in _ENDED
    ]
