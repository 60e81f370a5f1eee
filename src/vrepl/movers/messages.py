"""What crosses a data mover's pipes: one JSON object per line, and the values in it.

To the mover:    {"id": 7, "op": "transfer", …}; "stop" and "set_rate" have no id and are obeyed at once
                 {"op": "ticket" | "answer", "id": 3, "ok": {…} | "error": {…}}, to what the mover asked
From the mover:  {"id": 7, "ok": …} | {"id": 7, "error": {…}} | {"event": "progress" | "log", …}
                 {"event": "ticket" | "attach" | "detach" | "allocated", "id": 3, "request": {…}}
                 {"event": "ask", "id": 4, "question": "log.allow", …}, from a mover on another machine

Passwords and tickets travel here and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vrepl.errors import MoverError
from vrepl.movers import encoding
from vrepl.movers.engine import EngineSettings
from vrepl.ports import (
    AllocatedExtents,
    AttachedDisk,
    DigestFiles,
    DiskAddress,
    DiskRequest,
    NfcTicket,
    SiteConnection,
    TicketRequest,
    TransferOrder,
    TransferProgress,
    TransferResult,
    VerifyOrder,
    VerifyResult,
)
from vrepl.transport.tuning import Tuning

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Initialise:
    """What a mover is started with. Functions are named as `package.module:name`."""

    engine: str
    engine_settings: EngineSettings
    tuning: Tuning
    open_lookup: str
    log_writer: str
    """Both `RECORDS_ASKED`: the records lie with the control process, and are asked of it."""


RECORDS_ASKED = "asked of the control process"


Message = (
    Initialise
    | NfcTicket
    | SiteConnection
    | TicketRequest
    | DigestFiles
    | DiskAddress
    | DiskRequest
    | AttachedDisk
    | AllocatedExtents
    | TransferOrder
    | TransferProgress
    | TransferResult
    | VerifyOrder
    | VerifyResult
)
"""What crosses as a whole. `tests/unit/test_mover_messages.py` holds that none of these loses a field on its way."""
M = TypeVar(
    "M",
    Initialise,
    NfcTicket,
    SiteConnection,
    TicketRequest,
    DigestFiles,
    DiskAddress,
    DiskRequest,
    AttachedDisk,
    AllocatedExtents,
    TransferOrder,
    TransferProgress,
    TransferResult,
    VerifyOrder,
    VerifyResult,
)


ASKED = ("ticket", "attach", "detach", "allocated")
"""What a mover asks of the control process in the middle of a request."""


def to_line(message: Mapping[str, Any]) -> bytes:
    """One message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> Json:
    """Raises MoverError if it is not a message."""
    try:
        message = json.loads(line)
    except ValueError as error:
        raise MoverError(f"a data mover said something that is no message: {line[:200]!r}") from error
    if not isinstance(message, dict):
        raise MoverError(f"a data mover said something that is no message: {line[:200]!r}")
    return message


def encode(message: Message) -> Json:
    """Every field of it."""
    encoded: Json = encoding.encode(message)
    return encoded


def decode(kind: type[M], value: Json) -> M:
    """What was encoded, equal in every field. Raises MoverError where `value` is no such message."""
    return encoding.decode(kind, value)
