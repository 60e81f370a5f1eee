"""The digests and the transfer log of one disk of a replica: `disks/<source device key>/`.

Several restore points' sets share the files: a base, and a chain of deltas from it. A second base
(`base-<restore point id>.digests`) starts where the chain is broken: a restore point of which nothing was known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from vrepl.extents import Extent, grain_count, subtract
from vrepl.ports import DigestFiles
from vrepl.repository.digest_sets import open_lookup
from vrepl.repository.digest_writing import fold, merge_deltas, runs_of_entries, write_base, write_delta
from vrepl.repository.digests import (
    GRAINS_PER_PAGE,
    HEADER,
    PAGE,
    BaseHeader,
    BaseReader,
    DeltaHeader,
    DeltaReader,
    read_base_header,
    read_delta_header,
)
from vrepl.repository.files import TEMPORARY_SUFFIX, make_directory, naming, remove_file
from vrepl.repository.intent import DiskIntent
from vrepl.repository.transferlog import iterate_digests, read_log

BASE_NAME = "base.digests"
LOG_NAME = "transfer.log"
NOTHING = DigestFiles(base=None)


class DiskFolder:
    """Raises RepositoryError for what cannot be read or written; what is damaged counts as unknown."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def log(self) -> Path:
        return self.path / LOG_NAME

    def delta_path(self, restore_point_id: str) -> Path:
        return self.path / f"{restore_point_id}.delta"

    def make(self) -> None:
        make_directory(self.path)

    def bases(self) -> Iterator[tuple[Path, BaseHeader | None]]:
        """Each base with its header, None for a damaged one."""
        for path in self._list("base*.digests"):
            yield path, read_base_header(path)

    def deltas(self) -> Iterator[tuple[Path, DeltaHeader | None]]:
        """Each delta with its header, None for a damaged one (or one under a wrong name)."""
        for path in self._list("*.delta"):
            header = read_delta_header(path)
            right = header is not None and path == self.delta_path(header.restore_point_id)
            yield path, header if right else None

    def _list(self, pattern: str) -> list[Path]:
        with naming(self.path, "list"):
            return sorted(self.path.glob(pattern))

    def files_for(self, restore_point_id: str) -> DigestFiles:
        """The set that describes a restore point; `NOTHING` if none does."""
        described = {
            header.restore_point_id: path
            for path, header in self.bases()
            if header is not None and header.folding_into is None
        }
        deltas: list[Path] = []
        wanted = restore_point_id
        seen: set[str] = set()
        while wanted not in described:
            path = self.delta_path(wanted)
            header = read_delta_header(path)
            if header is None or header.restore_point_id != wanted or wanted in seen:
                return NOTHING
            seen.add(wanted)
            deltas.append(path)
            wanted = header.parent_id
        return DigestFiles(described[wanted], tuple(reversed(deltas)), restore_point_id=restore_point_id)

    def seal(self, intent: DiskIntent, restore_point_id: str, known: Collection[str], log: Path | None = None) -> None:
        """Make the set of `restore_point_id` from the transfer log, which stays; done already is done.

        `known`: ids of the restore points that exist; `log`: another one than the disk's own. Where the log does not
        show that everything planned was settled, there will be no set: unknown, rather than perhaps wrong.
        """
        self.make()
        log = log or self.log
        state = read_log(log)
        if self._sealed_length(restore_point_id) == state.length or (
            not state.length and self.files_for(restore_point_id).known
        ):
            return
        self.forget(restore_point_id)
        if subtract(intent.planned, state.attempt(intent.attempt).done):
            return
        parent = NOTHING
        if not intent.fresh and intent.parent_restore_point_id is not None:
            parent = self.files_for(intent.parent_restore_point_id)
        runs = iterate_digests(log) if state.length else iter(())
        if parent.known and intent.parent_restore_point_id is not None:
            lookup = open_lookup(parent, intent.capacity)
            try:
                if lookup.known:
                    write_delta(
                        self.delta_path(restore_point_id),
                        restore_point_id,
                        intent.parent_restore_point_id,
                        intent.capacity,
                        runs,
                        lookup,
                        log_length=state.length,
                    )
                    return
            finally:
                lookup.close()
        whole = not subtract([Extent(0, intent.capacity)], state.done)
        if not (intent.fresh or state.done):
            return
        write_base(
            self._new_base_path(restore_point_id, known),
            restore_point_id,
            intent.capacity,
            runs,
            background_known=intent.fresh or whole,
            log_length=state.length,
        )

    def is_built_upon(self, restore_point_id: str) -> bool:
        """Whether another restore point's set holds only what differs from this one's."""
        return any(header is not None and header.parent_id == restore_point_id for _, header in self.deltas())

    def write_set(
        self, restore_point_id: str, capacity: int, entries: Iterable[tuple[int, bytes]], known: Collection[str]
    ) -> None:
        """A set of its own for a restore point, in place of what was known of it."""
        self.make()
        # Deltas after it stay right: what they leave out equals what the restore point holds, known or not.
        path = self._new_base_path(restore_point_id, known)
        write_base(path, restore_point_id, capacity, runs_of_entries(entries), background_known=False)
        remove_file(self.delta_path(restore_point_id))
        for other, header in self.bases():
            if other != path and header and header.restore_point_id == restore_point_id:
                remove_file(other)

    def remove(self, restore_point_id: str) -> None:
        """Take a restore point's digests away; the sets that build on them are made independent of them first."""
        if not self.path.is_dir():
            return
        self.recover()
        followers = [path for path, header in self.deltas() if header and header.parent_id == restore_point_id]
        described = {header.restore_point_id: path for path, header in self.bases() if header}
        base = described.get(restore_point_id)
        own = self.delta_path(restore_point_id)
        # Damage (ValueError) is met by forgetting: what was built on it is then unknown.
        for path in followers:
            try:
                if base is not None:
                    fold(base, path)
                    base = None
                else:
                    merge_deltas(own, path)
            except ValueError:
                remove_file(path)
        if base is not None:
            remove_file(base)
        remove_file(own)
        self.remove_if_empty()

    def forget(self, restore_point_id: str) -> None:
        """Remove what describes a restore point that nothing builds on."""
        remove_file(self.delta_path(restore_point_id))
        for path, header in list(self.bases()):
            if header is not None and header.restore_point_id == restore_point_id:
                remove_file(path)

    def recover(self) -> None:
        """Complete or undo what a crash cut off. Wants the replica's lock."""
        for path in self._list(f"*{TEMPORARY_SUFFIX}"):
            remove_file(path)
        for path, damaged in [*self.bases(), *self.deltas()]:
            if damaged is None:
                remove_file(path)
        for path, header in list(self.bases()):
            if header is None:
                continue
            target = header.folding_into or header.restore_point_id
            delta = self.delta_path(target)
            if header.folding_into is not None or delta.exists():
                try:
                    fold(path, delta)
                except ValueError:
                    # The delta is gone or damaged: half-folded pages describe nothing.
                    remove_file(path if header.folding_into is not None else delta)

    def discard(self, known: Collection[str]) -> None:
        """Remove the transfer log, and what an unfinished seal made of it."""
        remove_file(self.log)
        needed = {
            path
            for restore_point_id in known
            for files in [self.files_for(restore_point_id)]
            for path in (files.base, *files.deltas)
        }
        for path, header in [*self.bases(), *self.deltas()]:
            if header is not None and header.restore_point_id not in known and path not in needed:
                remove_file(path)

    def remove_if_empty(self) -> None:
        with naming(self.path, "remove"), suppress(FileNotFoundError):
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def check(self, known: Collection[str], report: Callable[[Path, str], None]) -> None:
        """Tell `report` about every file that is damaged or belongs to nothing. Reads everything, changes nothing."""
        for path in self._list(f"*{TEMPORARY_SUFFIX}"):
            report(path, "was never finished; the next run removes it")
        for path, base in self.bases():
            if base is None:
                report(path, "is damaged: no digests are known from it")
            elif base.folding_into is not None:
                report(path, f"was being changed to describe {base.folding_into}; the next run completes it")
            else:
                if base.restore_point_id not in known:
                    report(path, f"describes {base.restore_point_id}, which does not exist")
                bad = _bad_pages(path, base)
                if bad:
                    report(path, f"{bad} of its pages are damaged: the digests of up to {bad * GRAINS_PER_PAGE} grains")
        for path, delta in self.deltas():
            if delta is None:
                report(path, "is damaged: the digests of its restore point, and of those after it, are unknown")
                continue
            if delta.restore_point_id not in known:
                report(path, f"describes {delta.restore_point_id}, which does not exist")
            elif not self.files_for(delta.restore_point_id).known:
                report(path, f"builds on {delta.parent_id}, whose digests are not known")
            try:
                DeltaReader(path, delta).close()
            except ValueError as error:
                report(path, f"is damaged: {error}")
        if read_log(self.log).damaged:
            report(self.log, "is damaged in the middle: everything that its run planned counts as written")

    def _sealed_length(self, restore_point_id: str) -> int | None:
        """How long the log was that the restore point's own file was made of; None: there is no such file."""
        header = read_delta_header(self.delta_path(restore_point_id))
        if header is not None:
            return header.log_length or None
        for _, base in self.bases():
            if base is not None and base.restore_point_id == restore_point_id:
                return base.log_length or None
        return None

    def _new_base_path(self, restore_point_id: str, known: Collection[str]) -> Path:
        """`base.digests`, unless that still serves another restore point."""
        path = self.path / BASE_NAME
        header = read_base_header(path)
        if header is None or header.restore_point_id not in known or header.restore_point_id == restore_point_id:
            return path
        return self.path / f"base-{restore_point_id}.digests"


def _bad_pages(path: Path, header: BaseHeader) -> int:
    reader = BaseReader(path, header)
    try:
        with naming(path, "read"):
            pages = max(path.stat().st_size - HEADER, 0) // PAGE
            expected = -(-grain_count(header.capacity) // GRAINS_PER_PAGE)
            bad = max(expected - pages, 0)
            return bad + sum(1 for index in range(min(pages, expected)) if reader.read_page(index) is None)
    finally:
        reader.close()
