"""`seen.json`: by which refs the replica and the snapshot of its newest restore point were known when that was sealed.

A hint that saves calls, no more: whoever looks there believes it only where the VM has the replica's instanceUuid, and
the VM that snapshot. Lost, damaged or out of date, the two are looked up.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vrepl.errors import RepositoryError
from vrepl.model import Sighting
from vrepl.repository.documents import DocumentType
from vrepl.repository.files import replace_bytes

SIGHTING_DOCUMENT = DocumentType(Sighting)


def last_sighting(replica_folder: Path) -> Sighting | None:
    try:
        return SIGHTING_DOCUMENT.read(replica_folder / "seen.json")
    except RepositoryError:
        return None


def note_sighting(replica_folder: Path, sighting: Sighting) -> None:
    """Atomic, and not worth a sync: after a crash of the machine the older one is there, or none."""
    with suppress(RepositoryError):
        replace_bytes(replica_folder / "seen.json", SIGHTING_DOCUMENT.encode(sighting), durable=False)
