"""One property collector for every task of a site that anybody waits for.

A ListView holds the tasks that are waited for, a filter of a property collector of our own follows it, and one thread
asks for updates. All three live as long as the login that made them, so a new login makes them anew; the state of every
task comes again then, and nothing is lost.

Calls are shared where that costs no time: tasks that were started shortly one after the other are put into the view
together, and ends that lie close together come with one answer. How long is waited for others follows from how long
tasks have taken here lately, so that it is nothing beside them: GATHER and PAUSE.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from vrepl.errors import InterruptedRunError, VreplError, VsphereError
from vrepl.vsphere import collector
from vrepl.vsphere.api import ref_of, vim, vmodl
from vrepl.vsphere.faults import OutcomeUnknownError
from vrepl.vsphere.session import Session

log = logging.getLogger(__name__)

LONGEST_ASK = 60
"""Seconds that one WaitForUpdatesEx may stay unanswered; below the HTTP timeout, so that a dead connection shows."""

GATHER = 0.5, 1.0
"""A task is put into the view once this share of the shortest of the last tasks' times has passed, in seconds at the
most: it will not have ended before, so nobody waits for it."""

PAUSE = 0.1, 0.25
"""The share of that time, and the seconds at the most, between an answer and the next question."""
PROMPT_PAUSE = 0.02, 0.02
"""The same at a site whose settings want news promptly: what ends at one moment still comes together."""

LATELY = 16
"""Tasks whose times count."""

ENDED = frozenset({"success", "error"})
CONSOLIDATION = "runtime.consolidationNeeded"
_PATHS = ["info.state", "info.error", "info.result"]


class VmBeside:
    """A VM that is looked at in the same updates as a task of it."""

    def __init__(self, vm: Any) -> None:
        self.vm = vm
        self.consolidation_needed: bool | None = None
        """When the task had ended; None: the updates did not tell."""


class TaskWait:
    """Somebody waits for this task."""

    def __init__(self, task: Any, beside: VmBeside | None, began: float) -> None:
        self.task = task
        self.beside = beside
        self.began = began
        self.in_view = False
        self.values: dict[str, Any] = {}
        """What is known of _PATHS."""
        self.ended = threading.Event()
        self.failure: VreplError | None = None

    def fail(self, error: VreplError) -> None:
        self.failure = error
        self.ended.set()


class TaskCollector:
    """Follows tasks. Thread-safe."""

    def __init__(self, session: Session, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._closed = threading.Event()
        self._pending: dict[str, TaskWait] = {}
        self._new: list[TaskWait] = []
        """Those of the pending ones that wait to be put into the view."""
        self._done: list[Any] = []
        """Tasks that may leave the view."""
        self._vms: dict[str, Any] = {}
        """VMs in the view."""
        self._needs: dict[str, bool] = {}
        """Which of them need consolidation, by what has come so far."""
        self._times: deque[float] = deque(maxlen=LATELY)
        self._started = False
        self._view: Any = None
        self._collector: Any = None
        self._view_generation = 0
        self._version = ""

    def follow(self, task: Any, beside: VmBeside | None) -> TaskWait:
        """Its `ended` is set once the task has ended, or waiting for it is in vain."""
        waiting = TaskWait(task, beside, self._monotonic())
        with self._lock:
            if self._closed.is_set():
                raise InterruptedRunError("stopped")
            self._pending[ref_of(task)] = waiting
            self._new.append(waiting)
            if not self._started:
                self._started = True
                for kind, work in (("tasks", self._serve), ("new-tasks", self._add)):
                    name = f"{kind}-{self._session.settings.name}"
                    threading.Thread(target=work, name=name, daemon=True).start()
            self._work.notify_all()
        return waiting

    def leave(self, waiting: TaskWait) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._pending.pop(ref_of(waiting.task), None)
            self._done.append(waiting.task)

    def fail_all(self, error: Callable[[], VreplError]) -> None:
        with self._lock:
            waiting = list(self._pending.values())
        for one in waiting:
            one.fail(error())

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            self._work.notify_all()

    def _share(self, rule: tuple[float, float]) -> float:
        """Seconds by a rule like GATHER; none before the first task has ended."""
        share, most = rule
        with self._lock:
            return min(most, share * min(self._times, default=0.0))

    # --- into the view

    def _add(self) -> None:
        while True:
            with self._lock:
                while not self._new and not self._closed.is_set():
                    self._work.wait()
            if self._closed.wait(self._share(GATHER)):
                return
            with self._lock:
                view, new = self._view, self._new
                self._new = []
                if view is None or not new:
                    continue  # whoever makes the view puts all of the pending ones into it
                done, self._done = self._done, []
                coming, going = self._vms_to_change()
            try:
                gone = view.ModifyListView(add=[*(one.task for one in new), *coming], remove=[*done, *going])
            except VreplError as error:
                with self._lock:
                    current = self._view is view and self._session.generation == self._view_generation
                if not current:
                    # A view made since holds these tasks, for they were among the pending ones already.
                    log.debug("the view of tasks has gone: %s", error)
                    self._forget(view)
                    continue
                for one in new:
                    one.fail(error)
            except Exception as error:
                # Nobody may wait for ever because of what went wrong here.
                log.exception("%s: new tasks", self._session.settings.name)
                for one in new:
                    one.fail(VsphereError(f"waiting for tasks failed: {error!r}"))
            else:
                missing = {ref_of(one) for one in gone or []}
                for one in new:
                    if ref_of(one.task) in missing:
                        one.fail(_vanished(one.task))
                self._in_view(new)

    def _in_view(self, those: Sequence[TaskWait]) -> None:
        with self._lock:
            for one in those:
                one.in_view = True
            self._work.notify_all()

    def _forget(self, view: Any) -> None:
        """It has gone: the next question makes a new one."""
        with self._lock:
            if self._view is view:
                self._view = None
            self._work.notify_all()

    def _vms_to_change(self) -> tuple[list[Any], list[Any]]:
        """VMs that must come into the view, and those that may leave it; the caller holds the lock, and does it."""
        wanted = {ref_of(one.beside.vm): one.beside.vm for one in self._pending.values() if one.beside is not None}
        coming = [vm for ref, vm in wanted.items() if ref not in self._vms]
        going = [vm for ref, vm in self._vms.items() if ref not in wanted]
        for vm in going:
            self._needs.pop(ref_of(vm), None)
        self._vms = wanted
        return coming, going

    # --- updates

    def _serve(self) -> None:
        losses = 0
        while True:
            with self._lock:
                while not self._is_something_to_ask() and not self._closed.is_set():
                    self._work.wait()
                if self._closed.is_set():
                    return
            try:
                self._ask()
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
            else:
                self._closed.wait(self._share(PROMPT_PAUSE if self._session.settings.prompt else PAUSE))

    def _is_something_to_ask(self) -> bool:
        """The caller holds the lock."""
        return any(one.in_view or self._view is None for one in self._pending.values())

    def _give_up(self) -> list[TaskWait]:
        """Everybody who waits, to be told that it is in vain; the lock is held."""
        waiting = list(self._pending.values())
        self._pending.clear()
        self._new.clear()
        self._view = None
        return waiting

    def _ask(self) -> None:
        """One question for updates, and what it brings."""
        if self._view is None or self._session.generation != self._view_generation:
            self._set_up()
        options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=LONGEST_ASK)
        news = self._collector.WaitForUpdatesEx(version=self._version, options=options)
        if news is None:
            return
        self._version = news.version
        updates = [update for one in news.filterSet or [] for update in one.objectSet or []]
        for missing in (missing for one in news.filterSet or [] for missing in one.missingSet or []):
            self._fail_one(missing.obj)
        with self._lock:
            # Before the tasks: what both say in one answer was so at one moment.
            for update in updates:
                self._note_vm(update)
        for update in updates:
            self._note_task(update)

    def _note_vm(self, update: Any) -> None:
        ref = ref_of(update.obj)
        if ref not in self._vms:
            return
        if str(update.kind) == "leave":
            self._needs.pop(ref, None)
            return
        told = [bool(change.val) for change in update.changeSet or [] if change.name == CONSOLIDATION]
        # Of a VM that comes into the view, what is not told is not set.
        self._needs[ref] = told[-1] if told else self._needs.get(ref, False)

    def _note_task(self, update: Any) -> None:
        with self._lock:
            waiting = self._pending.get(ref_of(update.obj))
            if waiting is None:
                return
            if str(update.kind) == "leave":
                self._pending.pop(ref_of(update.obj), None)
                waiting.fail(_vanished(update.obj))
                return
            waiting.values.update({change.name: change.val for change in update.changeSet or []})
            if str(waiting.values.get("info.state")) not in ENDED:
                return
            # Here and not where it is waited for: without this task there may be nothing left to ask for.
            self._pending.pop(ref_of(update.obj), None)
            self._times.append(self._monotonic() - waiting.began)
            if waiting.beside is not None:
                waiting.beside.consolidation_needed = self._needs.get(ref_of(waiting.beside.vm))
        waiting.ended.set()

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
            propSet=[
                query.PropertySpec(type=vim.Task, all=False, pathSet=_PATHS),
                query.PropertySpec(type=vim.VirtualMachine, all=False, pathSet=[CONSOLIDATION]),
            ],
            reportMissingObjectsInResults=True,
        )
        own.CreateFilter(spec=spec, partialUpdates=False)
        with self._lock:
            # From here on, new tasks are added as they come; one that is added twice stands in the view once.
            self._collector, self._view, self._view_generation, self._version = own, view, generation, ""
            self._new = []
            self._done, self._vms, self._needs = [], {}, {}
            coming, _ = self._vms_to_change()
            waiting = list(self._pending.values())
        for gone in list(view.ModifyListView(add=[*(one.task for one in waiting), *coming]) or []):
            self._fail_one(gone)
        self._in_view(waiting)

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
