"""What work at one VM has in common, whatever the command: where it stands, what is told of it, how it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from vrepl.engine.context import Surroundings
from vrepl.errors import InterruptedRunError, LockedError, NotReadyError, VreplError
from vrepl.report.model import ErrorReport, Result

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    result: Result
    error: ErrorReport | None = None


@dataclass(slots=True)
class VmWork:
    """One VM that a command works at."""

    services: Surroundings
    vm: str
    """As events and errors name it."""
    step: str = "start"
    notes: list[str] = field(default_factory=list)

    def enter(self, step: str, *, even_when_stopped: bool = False) -> None:
        """Raises InterruptedRunError once the operator asked to stop, unless the step belongs to a clean end."""
        if not even_when_stopped:
            self.services.check_stop()
        self.step = step
        self.services.events.vm_step(self.vm, step)

    def note(self, message: str) -> None:
        """For the operator, now, and for the report."""
        self.notes.append(message)
        self.services.events.note(self.vm, message)

    def outcome(self, work: Callable[[], None], *, interrupted_hint: str = "") -> Outcome:
        """Does the work; never raises. `interrupted_hint`: what to do after a stop, where the error does not say."""
        try:
            self.services.check_stop()
            work()
        except (LockedError, NotReadyError) as error:
            return Outcome(Result.SKIPPED, self._report(error))
        except InterruptedRunError as error:
            error.hint = error.hint or interrupted_hint or None
            return Outcome(Result.INTERRUPTED, self._report(error))
        except VreplError as error:
            return Outcome(Result.FAILED, self._report(error))
        except Exception as error:
            logger.exception("VM %s, %s: unexpected failure", self.vm, self.step)
            report = ErrorReport.of(error)
            report.step = self.step
            return Outcome(Result.FAILED, report)
        return Outcome(Result.SUCCESS)

    def _report(self, error: VreplError) -> ErrorReport:
        return ErrorReport.of(error.at(vm=self.vm, step=self.step))
