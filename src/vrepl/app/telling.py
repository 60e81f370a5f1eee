"""What happens around a run for those who were not there: pings, metrics, pages, notices. None of it can fail a run."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from vrepl import __version__
from vrepl.app.composition import Workshop
from vrepl.app.files import write_readable
from vrepl.app.pages import write_pages
from vrepl.app.protection import protection
from vrepl.app.sites import new_id, now, open_repository
from vrepl.config import LoadedConfig
from vrepl.engine.context import timestamped_id
from vrepl.errors import InterruptedRunError, LockedError, VreplError
from vrepl.notify.command import run_command
from vrepl.notify.ping import Signal, ping
from vrepl.notify.services import send
from vrepl.ports import Clock
from vrepl.report.metrics import exposition
from vrepl.report.model import ErrorReport, Result, RunReport, VmReport
from vrepl.report.notices import NOTICE_VERSION, Notice, due
from vrepl.repository.store import Repository
from vrepl.repository.told import ToldBook
from vrepl.secrets import Secrets

logger = logging.getLogger(__name__)

NO_RUN: Mapping[str, Any] = {"version": NOTICE_VERSION, "run": None, "vms": []}
"""What stands where a report would, when notices are told without a run (`status --notify`)."""


class Teller:
    """Tells as `[notify]`, `[metrics]` and `[report]` say. What cannot be told is a warning."""

    @classmethod
    def of(cls, workshop: Workshop) -> Teller:
        return cls(workshop.loaded, workshop.repository, now, workshop.secrets)

    @classmethod
    def of_configuration(cls, loaded: LoadedConfig) -> Teller:
        return cls(loaded, open_repository(loaded), now, Secrets())

    def __init__(self, loaded: LoadedConfig, repository: Repository, clock: Clock, secrets: Secrets) -> None:
        self._loaded = loaded
        self._notify = loaded.config.notify
        self._repository = repository
        self._clock = clock
        self._secrets = secrets

    def started(self, job: str) -> None:
        """Does not wait: a dead service must not hold up a run."""
        threading.Thread(target=self._ping, args=(job, Signal.START, ""), name="ping", daemon=True).start()

    def tell(self, document: Mapping[str, Any] = NO_RUN) -> list[Notice]:
        """Write the metrics, and tell what is new of all jobs; `document` is the report of what just ended.

        Returns the notices that were due.
        """
        notices: list[Notice] = []

        def all_of_it() -> None:
            book = ToldBook(self._repository.path)
            with book.lock():
                seen = protection(self._loaded, self._repository, self._clock())
                textfile = self._loaded.config.metrics.textfile
                if textfile is not None:
                    self._safely(lambda: write_readable(textfile, exposition(seen, __version__)))
                folder = self._loaded.config.report.html
                if folder is not None:
                    self._safely(
                        lambda: write_pages(folder, self._loaded, self._repository, self._clock(), _run_of(document))
                    )
                if not self._notify.wanted:
                    return
                new, told = due(seen, book.read())
                notices.extend(new)
                if self._notify.on_finish is not None and (new or document is not NO_RUN):
                    command = self._notify.on_finish
                    status = {**seen.to_json(), "exit_code": seen.exit_code}
                    content = {**document, "notices": [notice.to_json() for notice in new], "status": status}
                    self._safely(lambda: run_command(command, content))
                if new and self._notify.urls:
                    self._safely(lambda: send([self._secret(url) for url in self._notify.urls], *_words(new)))
                book.write(told)

        config = self._loaded.config
        if self._notify.wanted or config.metrics.textfile is not None or config.report.html is not None:
            self._safely(all_of_it)
        return notices

    def _ping(self, job: str, signal: Signal, words: str) -> None:
        address = self._notify.ping
        if address is not None:
            self._safely(lambda: ping(self._secret(address), job, signal, words))

    def _secret(self, table: Any) -> SecretStr:
        return self._secrets.resolve(table.reference())

    def around(self, job: str, vms: Sequence[str], run: Callable[[], RunReport]) -> RunReport:
        """A run with what is told of it. One that fails as a whole is kept as a failed run of all its VMs."""
        started = self._clock()
        self.started(job)
        try:
            report = run()
        except (LockedError, InterruptedRunError):
            raise  # another run sees to it, or the operator knows
        except VreplError as error:
            report = failed_run(job, vms, error, started, self._clock())
            run_id = report.id or ""
            self._safely(lambda: self._repository.save_run(run_id, report.to_json()))
            self._finished(report)
            raise
        self._finished(report)
        return report

    def _finished(self, report: RunReport) -> None:
        wrong = [f"{vm.name}: {vm.error.message}" for vm in report.vms if vm.error is not None]
        succeeded = report.result is Result.SUCCESS
        if not report.interrupted:
            self._ping(report.job, Signal.SUCCESS if succeeded else Signal.FAIL, "\n".join(wrong))
        self.tell(report.to_json())

    @staticmethod
    def _safely(action: Callable[[], None]) -> None:
        try:
            action()
        except VreplError as error:
            logger.warning("%s%s", error, f" (hint: {error.hint})" if error.hint else "")
        except Exception as error:
            logger.warning("telling how it went failed: %s: %s", type(error).__name__, error)


def failed_run(
    job: str, vms: Sequence[str], error: VreplError, started: dt.datetime, finished: dt.datetime
) -> RunReport:
    """The report of a run that came to nothing before it had one: history and status must not show the one before."""
    told = ErrorReport.of(error)
    reports = [VmReport(name, Result.FAILED, error=told, seconds=0.0) for name in vms]
    return RunReport(job, timestamped_id(started, new_id()), started, finished, reports)


def _run_of(document: Mapping[str, Any]) -> RunReport | None:
    return RunReport.from_json(document) if document.get("run") else None


def _words(notices: list[Notice]) -> tuple[str, str]:
    """Title and body."""
    first = notices[0]
    title = f"vrepl: {first.kind}: {first.vm}" + (f" and {len(notices) - 1} more" if len(notices) > 1 else "")
    return title, "\n".join(f"{notice.job}: {notice.message}" for notice in notices)
