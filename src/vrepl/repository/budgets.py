"""The budgets that all runs of a repository share: what each run holds, told in a file of its own under `budgets/`.

    lock                   flock, held while one run looks and tells: a fraction of a millisecond
    <pid>-<random>.json    one run's stakes, as a person can read them; locked by flock as long as its owner lives

A run looks at the others' files, decides (`vrepl.admission`), and writes its own, all with the lock held. The kernel
frees the file of a run that was killed; whoever looks next finds it so and removes it, and what it held is free.
Nothing here outlives its run, so nothing is synced. A file is there only while its run holds something or waits.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from vrepl.admission import Admission, Resource, Scarce, Stake, Start, fits
from vrepl.errors import RepositoryError
from vrepl.repository.files import FILE_MODE, make_directory, naming, write_all
from vrepl.repository.locks import taken, this_process

PATIENCE = 1.0
"""Seconds that a run which has the right of way may leave free what it waits for: it may have been stopped (SIGSTOP),
or lack something else by now. Then the others take it."""
LOCK_SECONDS = 1.0
"""How long the lock is tried for: one who was stopped while it held it must not stop the others' threads for good."""

logger = logging.getLogger(__name__)

Stakes = dict[Resource, Stake]


class Budgets:
    """One run's part in them. Not thread-safe: the caller's own lock is held around every call."""

    def __init__(self, directory: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._monotonic = monotonic
        self._owner = this_process()
        self._own: Stakes = {}
        self._file: tuple[Path, int] | None = None
        self._heard: dict[str, Stakes] = {}
        """By run, as they were told to the admission."""
        self._could: dict[tuple[str, Resource], tuple[Stake, float]] = {}
        """Since when a run could have what it waits for."""
        self.others = False
        """Whether other runs have a part in the budgets, as far as was seen; then it is worth looking again."""

    def admit(self, admission: Admission) -> list[Start]:
        """What may start now, told to the other runs before it does; nothing while they cannot be asked.

        Raises RepositoryError where others cannot be looked for; nothing has started then.
        """
        self.others = True  # unless it is seen that there are none: who waits must not wait for ever
        with self._locked() as locked:
            if not locked:
                return []
            self._hear(admission)
            started = admission.admit()
            try:
                self._tell(admission.told())
            except RepositoryError as error:
                # Not worth a failed VM: what it needs of a repository that cannot be written fails by itself.
                logger.warning("other runs do not know what this one takes of hosts and datastores: %s", error.message)
            return started

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether the lock could be had."""
        make_directory(self._directory)
        path = self._directory / "lock"
        with naming(path, "lock"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            with naming(path, "lock"):
                until = time.monotonic() + LOCK_SECONDS
                while not (locked := taken(descriptor)) and time.monotonic() < until:
                    time.sleep(0.001)
            yield locked
        finally:
            os.close(descriptor)

    # -- hearing ---------------------------------------------------------------------------------------------------

    def _hear(self, admission: Admission) -> None:
        runs = self._look()
        self.others = bool(runs)
        self._drop_rights_that_lapsed(runs)
        for run in {*self._heard, *runs}:
            before, now = self._heard.get(run, {}), runs.get(run, {})
            changed = {resource: now.get(resource, Stake()) for resource in {*before, *now}}
            admission.hear(run, {one: stake for one, stake in changed.items() if stake != before.get(one, Stake())})
        self._heard = runs

    def _look(self) -> dict[str, Stakes]:
        """The stakes of the others that live; files of the dead are removed."""
        found: dict[str, Stakes] = {}
        with naming(self._directory, "look for other runs in"):
            for name in os.listdir(self._directory):
                path = self._directory / name
                if path.suffix != ".json" or (self._file is not None and path == self._file[0]):
                    continue
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                try:
                    if taken(descriptor):
                        os.unlink(path)
                    else:
                        found[name] = _decoded(os.read(descriptor, os.fstat(descriptor).st_size))
                finally:
                    os.close(descriptor)
        return found

    def _drop_rights_that_lapsed(self, runs: dict[str, Stakes]) -> None:
        """Whoever could have taken what it waits for, and has not for PATIENCE seconds, does not count as waiting."""
        now = self._monotonic()
        could: dict[tuple[str, Resource], tuple[Stake, float]] = {}
        lapsed: list[tuple[str, Resource]] = []
        for run, stakes in runs.items():
            for resource, stake in stakes.items():
                others = [other[resource] for name, other in runs.items() if name != run and resource in other]
                if not stake.wanted or not fits(stake, [*others, self._own.get(resource, Stake())]):
                    continue
                was, since = self._could.get((run, resource), (stake, now))
                since = since if was == stake else now
                could[run, resource] = stake, since
                if now - since > PATIENCE:
                    lapsed.append((run, resource))
        self._could = could
        for run, resource in lapsed:
            stake = runs[run][resource]
            runs[run][resource] = Stake(stake.held, 0.0, stake.limit, stake.turn)

    # -- telling ---------------------------------------------------------------------------------------------------

    def _tell(self, changed: Mapping[Resource, Stake]) -> None:
        if not changed:
            return
        self._own.update(changed)
        self._own = {resource: stake for resource, stake in self._own.items() if not stake.is_empty}
        if not self._own:
            self._withdraw()
            return
        if self._file is None:
            path = self._directory / f"{os.getpid()}-{os.urandom(4).hex()}.json"
            with naming(path, "write"):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
                self._file = path, descriptor
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        path, descriptor = self._file
        content = self._encoded()
        with naming(path, "write"):
            write_all(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))

    def _encoded(self) -> bytes:
        rows = [
            {"kind": resource.kind.value, "name": resource.name, **asdict(stake)}
            for resource, stake in self._own.items()
        ]
        return (json.dumps({**asdict(self._owner), "stakes": rows}) + "\n").encode()

    def _withdraw(self) -> None:
        if self._file is not None:
            (path, descriptor), self._file = self._file, None
            with naming(path, "remove"):
                path.unlink(missing_ok=True)
                os.close(descriptor)


def _decoded(content: bytes) -> Stakes:
    """What cannot be read is nothing: it may be of another version of vrepl."""
    try:
        return {
            Resource(Scarce(row["kind"]), str(row["name"])): Stake(
                float(row["held"]), float(row["wanted"]), float(row["limit"]), int(row["turn"])
            )
            for row in json.loads(content)["stakes"]
        }
    except (ValueError, KeyError, TypeError):
        return {}
