"""Pages in a folder: one per run, and an index over all of them."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from vrepl.app.files import write_readable
from vrepl.app.protection import protection
from vrepl.config import LoadedConfig
from vrepl.errors import RepositoryError, VreplError
from vrepl.report.chronicle import chronicle
from vrepl.report.model import RunReport
from vrepl.report.pages import History, page
from vrepl.repository.store import Repository


def history_of(loaded: LoadedConfig, repository: Repository, now: dt.datetime, pages: frozenset[str]) -> History:
    """Over all runs that the repository keeps."""
    reports = []
    for run in repository.runs(None, _passed_over):
        try:
            reports.append(RunReport.from_json(run))
        except (KeyError, TypeError, ValueError):
            continue  # of another version, or damaged: `repository check` names it
    objectives = {name: job.rpo for name, job in loaded.config.jobs.items()}
    return History(chronicle(reports), objectives, protection(loaded, repository, now), pages)


def write_pages(
    folder: Path, loaded: LoadedConfig, repository: Repository, now: dt.datetime, run: RunReport | None
) -> None:
    """The page of `run`, if there is one, and the index anew. Pages of runs that are no longer kept go.

    Raises VreplError.
    """
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if run is not None and run.id is not None:
            write_readable(folder / f"{run.id}.html", page(now, run=run, back=True).encode())
        kept = {path.stem for path in (repository.path / "runs").glob("*.json")}
        there = {path.stem: path for path in folder.glob("????????T??????Z-*.html")}
        for name in there.keys() - kept:
            there[name].unlink(missing_ok=True)
    except OSError as error:
        raise VreplError(f"pages cannot be written to {folder}: {error.strerror}") from error
    history = history_of(loaded, repository, now, frozenset(there.keys() & kept))
    write_readable(folder / "index.html", page(now, history=history).encode())


def _passed_over(damaged: RepositoryError) -> None:
    """`repository check` names it, and so does every listing."""
    del damaged
