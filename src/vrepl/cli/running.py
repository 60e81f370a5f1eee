"""How `plan` and `replicate` go through jobs: which ones, what one's failure means for the others, stop signals."""

from __future__ import annotations

import datetime as dt
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from vrepl.cli.logs import log_line
from vrepl.cli.root import error_to_json
from vrepl.cli.streams import say
from vrepl.config.references import near
from vrepl.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PARTIAL,
    InterruptedRunError,
    NotFoundError,
    UsageError,
    VreplError,
)
from vrepl.model import JobSettings
from vrepl.report import format as words
from vrepl.report.model import FORMAT_VERSION, Result, RunReport

if TYPE_CHECKING:
    from vrepl.cli.state import State
    from vrepl.config import LoadedConfig
    from vrepl.engine.events import EngineEvents
    from vrepl.repository.replica_folder import ReplicaFolder
    from vrepl.repository.store import Repository


REST_SECONDS = 4.0
"""From when a site was given up to the end of the process at the latest."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A job, and those of its VMs that were asked for (none: all)."""

    job: JobSettings
    vms: tuple[str, ...]


def select(loaded: LoadedConfig, job_names: Sequence[str], vm_names: Sequence[str]) -> list[Selection]:
    """The jobs named, or all; narrowed to VMs, only those jobs that have one of them.

    Raises NotFoundError for a job that is not configured, or a VM that none of the jobs has.
    """
    jobs = loaded.jobs(job_names)
    if not vm_names:
        return [Selection(job, ()) for job in jobs]
    known = [vm for job in jobs for vm in job.vms]
    for name in vm_names:
        if not any(job.may_mean(name) for job in jobs):
            raise NotFoundError(
                f'no VM "{name}" in job {", ".join(job.name for job in jobs)}{near(name, known)}',
                hint=f"VMs: {', '.join(dict.fromkeys(known))}",
            )
    wanted = [Selection(job, tuple(name for name in dict.fromkeys(vm_names) if job.may_mean(name))) for job in jobs]
    return [selection for selection in wanted if selection.vms]


def mapping_of(selections: Sequence[Selection], texts: Sequence[str]) -> dict[str, str]:
    """`SOURCE=VM` texts as a mapping from source VM names to names of VMs of the target.

    Raises UsageError for what is none, NotFoundError for a source that the selected jobs do not have.
    """
    mapping: dict[str, str] = {}
    for text in texts:
        source, _, name = text.partition("=")
        if not source or not name:
            raise UsageError(f"--map {text}: expected SOURCE=VM", hint="such as --map web-01=web-01-restored")
        jobs = [one.job.name for one in selections if (source in one.vms if one.vms else one.job.may_mean(source))]
        if not jobs:
            known = [vm for one in selections for vm in (one.vms or one.job.vms)]
            raise NotFoundError(f'--map {text}: no VM "{source}" in what shall run{near(source, known)}')
        if len(jobs) > 1:
            raise UsageError(f"--map {text}: {source} is in the jobs {', '.join(jobs)}", hint="name one of them")
        if source in mapping or name in mapping.values():
            raise UsageError(f"--map {text}: each VM can be mapped once")
        mapping[source] = name
    return mapping


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job: a report, or an error that stopped it as a whole."""

    job: str
    report: RunReport | None
    error: VreplError | None = None

    @property
    def exit_code(self) -> int:
        if self.error is not None:
            return self.error.exit_code
        assert self.report is not None
        return self.report.exit_code

    def to_json(self) -> dict[str, Any]:
        if self.report is not None:
            return self.report.to_json()
        assert self.error is not None
        head = {**RunReport(job=self.job).to_json(), "error": error_to_json(self.error)}
        head["run"]["result"] = Result.FAILED.value
        return head


def go_through(
    selections: Sequence[Selection], act: Callable[[Selection], RunReport], stopped: threading.Event
) -> list[Outcome]:
    """One outcome per job; a job that fails as a whole does not keep the next from running, a stop does."""
    outcomes: list[Outcome] = []
    for selection in selections:
        try:
            outcomes.append(Outcome(selection.job.name, act(selection)))
        except VreplError as error:
            if len(selections) == 1:
                raise
            outcomes.append(Outcome(selection.job.name, None, error))
        if stopped.is_set():
            break
    return outcomes


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 if all went well, the common code if all failed alike, 130 if stopped, else 3."""
    codes = {outcome.exit_code for outcome in outcomes}
    if EXIT_INTERRUPTED in codes:
        return EXIT_INTERRUPTED
    if len(codes) == 1:
        return codes.pop()
    return EXIT_PARTIAL if codes & {EXIT_OK, EXIT_PARTIAL} else EXIT_FAILED


def to_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One job: its report itself; several: a list of them under `runs`."""
    if len(outcomes) == 1:
        return outcomes[0].to_json()
    return {"version": FORMAT_VERSION, "runs": [outcome.to_json() for outcome in outcomes]}


def with_retries(
    run: Callable[[tuple[str, ...]], RunReport],
    vms: tuple[str, ...],
    *,
    retries: int,
    wait: float,
    stopped: threading.Event,
    tell: Callable[[str], None],
) -> RunReport:
    """Run, and run the failed VMs again up to `retries` times, `wait` seconds apart; one report of it all."""
    report: RunReport | None = None
    for left in range(retries, -1, -1):
        try:
            latest = run(vms)
        except VreplError as error:
            if not error.retryable or not left or stopped.is_set():
                if report is None:
                    raise
                return report
            tell(f"{error.message}; trying again in {words.duration(wait)}")
        else:
            report = latest if report is None else report.followed_by(latest)
            vms = tuple(vm.name for vm in report.vms if vm.result is Result.FAILED)
            if not vms or not left or report.interrupted:
                return report
            tell(f"failed: {', '.join(vms)}; running again in {words.duration(wait)}")
        if stopped.wait(wait):
            if report is None:
                raise InterruptedRunError("stopped while waiting to try again")
            report.interrupted = True
            return report
    raise AssertionError("unreachable: the last try returns or raises")


@contextmanager
def stop_on_signals(stop: Callable[[], None], stopped: threading.Event, saying: str = "stopping") -> Iterator[None]:
    """SIGINT and SIGTERM ask for a clean stop, and `saying` tells so; the third one ends the process."""
    count = 0

    def asked(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count == 1:
            stopped.set()
            say(saying)
            # In a thread: the main thread may hold a lock that stopping needs.
            threading.Thread(target=stop, name="stop", daemon=True).start()
        elif count == 2:
            say("still cleaning up; once more gives up (the next run then cleans up)")
        else:
            os._exit(EXIT_INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def seconds_until(moment: dt.time, now: dt.datetime) -> float:
    """To the next time that a clock shows `moment`, which is local time as `now` is."""
    then = dt.datetime.combine(now.date(), moment, now.tzinfo)
    if then <= now:
        then += dt.timedelta(days=1)
    return (then - now).total_seconds()


@dataclass(slots=True)
class Deadline:
    """`--stop-at`: a run that ends by it ended as it was asked to."""

    stop_at: dt.time | None
    passed: bool = False

    @contextmanager
    def watch(self, stop: Callable[[], None], stopped: threading.Event) -> Iterator[None]:
        """Asks for a clean stop when the time comes."""
        if self.stop_at is None:
            yield
            return

        def ask() -> None:
            self.passed = True
            stopped.set()
            say(f"it is {self.stop_at:%H:%M}: stopping; the next run goes on from here")
            stop()

        timer = threading.Timer(seconds_until(self.stop_at, dt.datetime.now().astimezone()), ask)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def exit_code(self, code: int) -> int:
        """3 instead of 130 where it was the clock that stopped the run: some VMs are left for the next."""
        return EXIT_PARTIAL if self.passed and code == EXIT_INTERRUPTED else code


def left_behind(repository: Repository) -> Callable[[str], None]:
    """Says what a site that was given up is left with, and ends the process if the rest of it does not end soon."""

    def tell(site: str) -> None:
        say(f"{site} does not answer; what cannot be cleaned up there is left to the next run:")
        for folder in repository.unfinished(lambda error: say(f"  {error.message}")):
            for line in _leavings(folder, site):
                say(f"  {line}")

        def end() -> None:
            say("ending without the rest")
            os._exit(EXIT_INTERRUPTED)

        # What else may hang, on whichever thread: the operator was promised an end.
        timer = threading.Timer(REST_SECONDS, end)
        timer.daemon = True
        timer.start()

    return tell


def _leavings(folder: ReplicaFolder, site: str) -> Iterator[str]:
    intent, record = folder.intent(), folder.record
    if intent is None or site not in {record.source_site, record.target_site}:
        return
    if site == record.source_site:
        yield f"{record.source_name}: the snapshot {intent.source_snapshot_name}, if it was made"
    for access in intent.journal.prepared_for_access:
        if access.site == site:
            yield f"VM {access.vm_ref}: migration disabled as {access.identity}"
    if site == record.target_site:
        yield f"{record.target_name or record.source_name}: the unfinished leaf, which is gone on with"


@contextmanager
def events_for(state: State) -> Iterator[EngineEvents]:
    """What watches a run: nothing if quiet, bars on a terminal, lines elsewhere. SIGUSR1 makes it tell where it is."""
    from vrepl.report.progress import LiveProgress, LogProgress

    if state.quiet:
        from vrepl.engine.events import SilentEvents

        with _told_on_request(lambda: None):
            yield SilentEvents()
        return
    live = sys.stderr.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}
    write = log_line if state.log_format == "json" else None
    with LiveProgress() if live else LogProgress(write=write) as events, _told_on_request(events.tell_now):
        yield events


@contextmanager
def _told_on_request(tell: Callable[[], None]) -> Iterator[None]:
    """SIGUSR1 calls `tell`, from a thread of its own: the main thread may hold a lock that telling needs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def asked(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=tell, name="tell", daemon=True).start()

    before = signal.signal(signal.SIGUSR1, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
