"""`audit.json`: how far the audit of a replica's disks is. Lost or damaged, the audit begins anew."""

from __future__ import annotations

from pathlib import Path

from vrepl.planner.audit import AuditBook, DiskAudit
from vrepl.repository.documents import DamagedError, DocumentType


def _wrong(book: AuditBook) -> str | None:
    if all(_sound(audit) for audit in book.disks.values()):
        return None
    return "a part of it lies beyond its disk"


def _sound(audit: DiskAudit) -> bool:
    return 0 <= audit.position <= audit.capacity and all(
        part.offset >= 0 and 0 < part.length <= audit.capacity - part.offset for part in audit.parts
    )


AUDIT_DOCUMENT = DocumentType(AuditBook, valid=_wrong)


def read_audit_book(replica_folder: Path) -> tuple[AuditBook, DamagedError | None]:
    """An empty book where there is none, or it cannot be believed (then with the reason)."""
    try:
        return AUDIT_DOCUMENT.read(replica_folder / "audit.json") or AuditBook(), None
    except DamagedError as error:
        return AuditBook(), error


def write_audit_book(replica_folder: Path, book: AuditBook) -> None:
    """Durable before it returns."""
    AUDIT_DOCUMENT.write(replica_folder / "audit.json", book)
