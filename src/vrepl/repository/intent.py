"""What a run is about to do to one replica, on disk before it does it; the next run finishes or undoes it from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BeforeValidator, Field, PlainSerializer

from vrepl.extents import Extent
from vrepl.model import Side, TrackingPosition, TransferKind
from vrepl.repository.documents import DocumentType, remove_file


@dataclass(frozen=True, slots=True)
class DiskIntent:
    """One disk of the unfinished run. Extents are normal lists, in bytes, grain-aligned but for the disk's end."""

    source_key: int
    kind: TransferKind
    capacity: int
    attempt: int
    """Number of the attempt in the transfer log, from 1, counted since the last seal."""
    planned: tuple[Extent, ...]
    """What that attempt must settle."""
    change_id: str | None
    """Of the source snapshot that is being copied; None where CBT has none."""
    parent_restore_point_id: str | None
    """The restore point that is the leaf's parent; None on a first run."""
    fresh: bool
    """The replica's disk was created empty and never sealed: grains not in the log are zeros."""
    dirty: tuple[Extent, ...]
    """What attempts before this one may have written to the leaf since the last seal."""
    allocated_only: bool = False
    source_disk_uuid: str = ""
    source_base_path: str = ""
    """Of the source disk then: a change ID is believed only for the disk, in the place, that it was given for."""
    compare_with_target: Annotated[
        bool, Field(validation_alias=AliasChoices("compare_with_target", "compares_with_target"))
    ] = False
    """What the leaf held when its run began was not known: what is not settled yet must be compared by reading it."""

    @property
    def position(self) -> TrackingPosition:
        """Of the change tracking of the disk that is being copied."""
        return TrackingPosition(self.change_id, self.source_disk_uuid, self.source_base_path, self.capacity)


@dataclass(frozen=True, slots=True)
class PreparedAccess:
    """A PrepareForAccess that this run made and that still wants its EndAccess."""

    site: str
    vm_ref: str
    identity: str


@dataclass(frozen=True, slots=True)
class HotAddedDisks:
    """Disks of a VM that may hang on a proxy VM: on disk `SIDE:VM_REF:PROXY`, where no PROXY is this machine."""

    side: Side
    """Whose site: the original's or the replica's."""
    vm_ref: str
    proxy: str | None
    """A configured one's name, "" for this machine; None in an older entry (`SIDE:VM_REF`), which did not say."""

    @classmethod
    def parse(cls, text: object) -> HotAddedDisks:
        """Raises ValueError."""
        if isinstance(text, cls):
            return text
        side, vm_ref, *proxy = str(text).split(":", 2)
        return cls(Side(side), vm_ref, proxy[0] if proxy else None)

    def __str__(self) -> str:
        return ":".join([self.side, self.vm_ref, *([] if self.proxy is None else [self.proxy])])


@dataclass(frozen=True, slots=True)
class Journal:
    """Things outside the repository that this run made, each written here before or right after it was made."""

    prepared_for_access: tuple[PreparedAccess, ...] = ()
    hotadd_cleanup: tuple[
        Annotated[HotAddedDisks, BeforeValidator(HotAddedDisks.parse), PlainSerializer(str, return_type=str)], ...
    ] = ()
    """What may hang on a proxy VM."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """`leaf:KEY` -> which leaf of the replica's disk of that key is written to."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One unfinished run over one replica."""

    run_id: str
    restore_point_id: str
    """Of the restore point that the run will seal."""
    job: str
    disks: tuple[DiskIntent, ...] = ()
    journal: Journal = field(default_factory=Journal)
    source_snapshot_name: str = ""
    sealing: bool = False
    """The snapshot that seals was asked for: where it is missing, somebody may have removed it, and written before."""
    disks_run_id: str = ""
    """The run whose source snapshot `disks` speak of; another than `run_id` until that has one of its own."""

    def disk(self, source_key: int) -> DiskIntent | None:
        return next((disk for disk in self.disks if disk.source_key == source_key), None)


INTENT_DOCUMENT = DocumentType(Intent)


def load_intent(path: Path) -> Intent | None:
    """None if there is no unfinished run. Raises RepositoryError if it is damaged or from a newer vrepl."""
    return INTENT_DOCUMENT.read(path)


def save_intent(path: Path, intent: Intent) -> None:
    """Durable before it returns. Raises RepositoryError naming the path."""
    INTENT_DOCUMENT.write(path, intent)


def clear_intent(path: Path) -> None:
    """Durable before it returns; one that is gone already is fine."""
    remove_file(path)
