"""When a task is started again, and when it is looked for first."""

from __future__ import annotations

from typing import Any

import pytest

from vrepl.errors import DiskLockedError, TransientVsphereError, VsphereError
from vrepl.vsphere.api import vim, vmodl
from vrepl.vsphere.faults import OutcomeUnknownError
from vrepl.vsphere.retry import Retrier, RetryPolicy
from vrepl.vsphere.session import SiteSettings
from vrepl.vsphere.tasks import Tasks


class _Session:
    settings = SiteSettings("west", "vc", "user", "password")
    retrier = Retrier(RetryPolicy(attempts=3), sleep=lambda seconds: None)


class ScriptedTasks(Tasks):
    """Tasks whose ends are given: a fault, or a result."""

    def __init__(self, *ends: Any) -> None:
        super().__init__(_Session())  # type: ignore[arg-type]
        self.ends = list(ends)

    def _until_ended(self, task: Any, what: str, within: float | None = None, beside: Any = None) -> dict[str, Any]:
        end = self.ends.pop(0)
        if isinstance(end, vmodl.MethodFault):
            return {"info.state": "error", "info.error": end}
        if isinstance(end, Exception):
            raise end
        return {"info.state": "success", "info.result": end}


def test_a_busy_vm_is_asked_again() -> None:
    starts: list[int] = []
    tasks = ScriptedTasks(vim.fault.TaskInProgress(), vim.fault.FileLocked(), "snapshot-1")
    assert tasks.run(lambda: starts.append(1), what="try") == "snapshot-1"
    assert len(starts) == 3


@pytest.mark.parametrize(
    "fault", [vim.fault.InvalidState(), vim.fault.TooManySnapshotLevels(), vim.fault.NoDiskSpace()]
)
def test_a_permanent_fault_is_final(fault: Exception) -> None:
    starts: list[int] = []
    with pytest.raises(Exception, match="try: "):
        ScriptedTasks(fault).run(lambda: starts.append(1), what="try")
    assert len(starts) == 1


def test_the_last_fault_is_told() -> None:
    with pytest.raises(DiskLockedError):
        ScriptedTasks(*[vim.fault.FileLocked()] * 3).run(lambda: None, what="try")


def test_after_a_stop_nobody_waits_for_locks_but_clean_up_goes_on() -> None:
    starts: list[int] = []
    locked = ScriptedTasks(vim.fault.FileLocked(), "done")
    locked.hurry()
    with pytest.raises(DiskLockedError):
        locked.run(lambda: starts.append(1), what="try")
    assert len(starts) == 1
    busy = ScriptedTasks(vim.fault.TaskInProgress(), "done")
    busy.hurry()
    assert busy.run(lambda: None, what="try") == "done"


def test_what_may_exist_is_looked_for_before_it_is_made_again() -> None:
    starts: list[int] = []
    found = iter([None, "snapshot-7"])
    tasks = ScriptedTasks(vmodl.fault.HostCommunication(), OutcomeUnknownError("gone"))
    made = tasks.run(lambda: starts.append(1), what="try", recover=lambda: next(found))
    assert made == "snapshot-7"
    assert len(starts) == 2


def test_calls_that_were_tried_again_below_are_not_tried_again_here() -> None:
    """Else six attempts would become thirty-six."""
    starts: list[int] = []

    def start() -> None:
        starts.append(1)
        raise TransientVsphereError("busy", fault="TaskInProgress")

    with pytest.raises(TransientVsphereError):
        ScriptedTasks().run(start, what="try")
    assert len(starts) == 1


def test_a_task_that_fails_without_a_reason_is_still_an_error() -> None:
    class Mute(ScriptedTasks):
        def _until_ended(self, task: Any, what: str, within: float | None = None, beside: Any = None) -> dict[str, Any]:
            return {"info.state": "error"}

    with pytest.raises(VsphereError, match="does not say why"):
        Mute().run(lambda: None, what="try")
