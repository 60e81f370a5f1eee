"""The window in which scripts hold a guest still: pre_freeze, whatever is done then, post_thaw on every way out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from vrepl.engine.context import ReplicationContext
from vrepl.engine.events import Note
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.undo import Undo
from vrepl.errors import InterruptedRunError, VreplError, VsphereError
from vrepl.model import ListedVm, PowerState
from vrepl.model.guests import GuestPolicy, GuestProcess, OnScriptFailure, ProgramEnd, ScriptMoment, ScriptPlace
from vrepl.report.model import ScriptReport
from vrepl.report.redact import redact
from vrepl.repository.intent import Intent
from vrepl.repository.replica_folder import ReplicaFolder

logger = logging.getLogger(__name__)

FROZEN = "frozen"
"""The journal's note that pre_freeze has begun, and post_thaw has not ended yet."""

GRACE = 30.0
"""Seconds that a guest leaves whoever froze it, past the limit, to thaw it before it does so itself."""

Report = Callable[[ScriptReport], None]


class ScriptFailedError(VsphereError):
    """A script failed, and the job says that its VM fails with it."""


class GuestScripts:
    """A job's scripts for one VM, run and reported."""

    def __init__(self, context: ReplicationContext, vm: ListedVm, report: Report) -> None:
        self._context = context
        self._vm = vm
        self._report = report

    @property
    def policy(self) -> GuestPolicy:
        return self._context.job.guest

    @property
    def wanted(self) -> bool:
        """In a guest that does not run nothing can be frozen."""
        return self.policy.has_scripts and self._vm.power is PowerState.ON

    def run(self, moment: ScriptMoment, *, within: float) -> list[str]:
        """Those of this moment, each for `within` seconds at the most; what failed, in words.

        Before the snapshot the host's comes first and a failure ends it; afterwards the guest's comes first, and each
        is run whatever became of the others.
        """
        steps = [(ScriptPlace.CONTROL_HOST, self._on_host), (ScriptPlace.GUEST, self._in_guest)]
        failures: list[str] = []
        for place, run in steps if moment is ScriptMoment.PRE_FREEZE else reversed(steps):
            failure = self._one(moment, place, lambda run=run: run(moment, within), within)  # type: ignore[misc]
            if failure:
                failures.append(failure)
                if moment is ScriptMoment.PRE_FREEZE:
                    break
        return failures

    def arm(self) -> GuestProcess | None:
        """Before pre_freeze: the guest is to run post_thaw by itself, should nobody do it in time."""
        policy, host = self.policy, self._context.services.scripts
        if policy.pre_freeze is None or policy.post_thaw is None:
            return None
        script, login = host.read_script(policy.post_thaw), host.guest_login(self._context.job.name, self._vm.name)
        seconds = policy.frozen_at_most + GRACE
        return self._context.source.run_in_guest_later(self._vm.ref, login, script, seconds=seconds)

    def disarm(self, process: GuestProcess) -> None:
        with suppress(VreplError):
            login = self._context.services.scripts.guest_login(self._context.job.name, self._vm.name)
            self._context.source.forget_in_guest(self._vm.ref, login, process)

    def _one(
        self, moment: ScriptMoment, place: ScriptPlace, run: Callable[[], tuple[ProgramEnd, str] | None], within: float
    ) -> str | None:
        title = f"{moment} in the guest" if place is ScriptPlace.GUEST else f"{moment} on the control host"
        started = time.monotonic()
        end, output, failure = None, "", None
        try:
            done = run()
            if done is None:
                return None
            end, output = done
        except InterruptedRunError:
            raise
        except VreplError as error:
            failure = f"{title}: {error.message}" + (f" ({error.hint})" if error.hint else "")
        if end is not None and end.status is None:
            failure = f"{title} did not end within {within:.0f} s, and was ended"
        elif end is not None and end.status != 0:
            said = output.strip().splitlines()
            failure = f"{title} ended with status {end.status}" + (f": {said[-1][:200]}" if said else "")
        self._report(
            ScriptReport(
                moment=moment.value,
                place=place.value,
                status=None if end is None else end.status,
                output=output,
                output_cut=end is not None and end.cut,
                seconds=time.monotonic() - started,
                error=failure,
            )
        )
        return failure

    def _in_guest(self, moment: ScriptMoment, within: float) -> tuple[ProgramEnd, str] | None:
        path = self.policy.in_guest(moment)
        if path is None:
            return None
        host, site = self._context.services.scripts, self._context.source
        script, login = host.read_script(path), host.guest_login(self._context.job.name, self._vm.name)
        end = site.run_in_guest(self._vm.ref, login, script, within=within)
        return end, _text(end, [login.password])

    def _on_host(self, moment: ScriptMoment, within: float) -> tuple[ProgramEnd, str] | None:
        words = self.policy.on_host(moment)
        if not words:
            return None
        environment = {
            "VREPL_JOB": self._context.job.name,
            "VREPL_RUN": self._context.run_id,
            "VREPL_VM": self._vm.name,
            "VREPL_VM_UUID": self._vm.instance_uuid,
            "VREPL_MOMENT": moment.value,
        }
        end = self._context.services.scripts.run_command(words, environment, within=within)
        return end, _text(end, [])


def _text(end: ProgramEnd, secrets: list[str]) -> str:
    return redact(end.output.decode(errors="replace"), secrets)


class _Thaw:
    """post_thaw, once: by the regular way, by an undo, or when the guest has been frozen for as long as it may."""

    def __init__(self, scripts: GuestScripts, keeper: IntentKeeper, note: Note) -> None:
        self._scripts = scripts
        self._keeper = keeper
        self._note = note
        self._lock = threading.Lock()
        self._done = False
        self.overdue = False
        self.armed: GuestProcess | None = None

    def __call__(self, *, overdue: bool = False) -> None:
        """Raises ScriptFailedError where the job wants that."""
        with self._lock:
            if self._done:
                return
            self.overdue = overdue
            failures = self._scripts.run(ScriptMoment.POST_THAW, within=self._scripts.policy.script_timeout)
            self._done = True
            if failures:
                _judge(self._scripts.policy, failures, self._note)
                return
            if self.armed is not None:
                self._scripts.disarm(self.armed)
            self._keeper.change(_unmarked)

    def when_overdue(self) -> None:
        """In the timer's thread: nothing is raised there."""
        try:
            self(overdue=True)
        except Exception as error:
            logger.warning("post_thaw: %s", error)
            self._note(f"the guest was frozen for too long, and thawing failed: {error}")


@contextmanager
def guest_frozen(scripts: GuestScripts, keeper: IntentKeeper, note: Note) -> Iterator[None]:
    """Raises ScriptFailedError where a script fails, or the window lasts too long, and the job wants that."""
    if not scripts.wanted:
        yield
        return
    policy = scripts.policy
    thaw = _Thaw(scripts, keeper, note)
    timer = threading.Timer(policy.frozen_at_most, thaw.when_overdue)
    timer.daemon = True
    with Undo(note) as undo:
        keeper.change(_marked)
        undo.push("thaw the guest", thaw)
        timer.start()
        try:
            failures = _arm(scripts, thaw, keeper)
            if not failures:
                within = min(policy.script_timeout, policy.frozen_at_most)
                failures = scripts.run(ScriptMoment.PRE_FREEZE, within=within)
            if failures:
                _judge(policy, failures, note)
            yield
            undo.release_all()
        finally:
            timer.cancel()
    if thaw.overdue:
        _judge(
            policy,
            [f"the guest had to be thawed after {policy.frozen_at_most:.0f} s, before the snapshot was taken"],
            note,
        )


def thaw_after_the_dead(
    context: ReplicationContext, folder: ReplicaFolder, vm: ListedVm, scripts: GuestScripts
) -> list[str]:
    """With the replica's lock held: post_thaw, where a dead run may have left the guest frozen; what was done."""
    intent = folder.intent()
    if intent is None or FROZEN not in intent.journal.notes:
        return []
    done = []
    if scripts.wanted:
        failures = scripts.run(ScriptMoment.POST_THAW, within=scripts.policy.script_timeout)
        if failures:
            return [f"a dead run may have left the guest frozen: {failure}" for failure in failures]
        done = ["post_thaw was run: a dead run may have left the guest frozen"]
    elif vm.power is PowerState.ON:
        done = [
            f"a dead run of job {intent.job} may have left the guest frozen, and this job has no scripts to thaw it"
        ]
    armed = _armed(intent)
    if armed is not None:
        scripts.disarm(armed)
    folder.save_intent(_unmarked(intent))
    return done


def _judge(policy: GuestPolicy, failures: list[str], note: Note) -> None:
    if policy.on_script_failure is OnScriptFailure.FAIL:
        raise ScriptFailedError(
            "; ".join(failures),
            hint='the report has the output; on_script_failure = "continue" in [jobs.NAME.guest] goes on all the same',
        )
    for failure in failures:
        note(failure)


def _arm(scripts: GuestScripts, thaw: _Thaw, keeper: IntentKeeper) -> list[str]:
    """What failed, in words: then nothing is frozen."""
    try:
        armed = scripts.arm()
    except InterruptedRunError:
        raise
    except VreplError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return [f"post_thaw could not be laid ready in the guest, which is not frozen: {error.message}{hint}"]
    if armed is not None:
        thaw.armed = armed
        keeper.change(lambda intent: _marked(intent, armed))
    return []


def _unmarked(intent: Intent) -> Intent:
    notes = {key: value for key, value in intent.journal.notes.items() if key != FROZEN}
    return replace(intent, journal=replace(intent.journal, notes=notes))


def _marked(intent: Intent, armed: GuestProcess | None = None) -> Intent:
    text = intent.run_id if armed is None else f"{intent.run_id} {armed.pid} {armed.folder}"
    return replace(intent, journal=replace(intent.journal, notes={**intent.journal.notes, FROZEN: text}))


def _armed(intent: Intent) -> GuestProcess | None:
    _, *process = intent.journal.notes[FROZEN].split(" ", 2)
    return GuestProcess(int(process[0]), process[1]) if len(process) == 2 else None
