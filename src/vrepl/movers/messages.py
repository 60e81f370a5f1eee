"""What crosses a data mover's pipes: one JSON object per line, and the values in it.

To the mover:    {"id": 7, "op": "transfer", …}; "stop" and "set_rate" have no id and are obeyed at once
From the mover:  {"id": 7, "ok": …} | {"id": 7, "error": {…}} | {"event": "progress" | "log", …}

Passwords travel here and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vrepl.errors import MoverError
from vrepl.extents import Extent
from vrepl.model import TransferKind, TransportMode
from vrepl.movers.engine import EngineSettings
from vrepl.ports import (
    DigestFiles,
    DiskAddress,
    SiteConnection,
    TransferOrder,
    TransferProgress,
    TransferResult,
    VerifyOrder,
    VerifyResult,
)

Json = dict[str, Any]


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


def site_to_json(site: SiteConnection) -> Json:
    return asdict(site)


def site_from_json(value: Json) -> SiteConnection:
    return SiteConnection(**value)


def address_to_json(address: DiskAddress) -> Json:
    return asdict(address)


def address_from_json(value: Json) -> DiskAddress:
    return DiskAddress(**value | {"modes": tuple(TransportMode(mode) for mode in value["modes"])})


def _files_to_json(files: DigestFiles) -> Json:
    return {
        "base": None if files.base is None else str(files.base),
        "deltas": [str(path) for path in files.deltas],
        "fresh": files.fresh,
        "restore_point_id": files.restore_point_id,
    }


def _files_from_json(value: Json) -> DigestFiles:
    base = value["base"]
    return DigestFiles(
        None if base is None else Path(base),
        tuple(Path(path) for path in value["deltas"]),
        value["fresh"],
        value["restore_point_id"],
    )


def order_to_json(order: TransferOrder) -> Json:
    return {
        "kind": order.kind,
        "source": address_to_json(order.source),
        "target": address_to_json(order.target),
        "regions": [list(extent) for extent in order.regions],
        "allocated_only": order.allocated_only,
        "dirty": [list(extent) for extent in order.dirty],
        "parent": _files_to_json(order.parent),
        "read_target": order.read_target,
        "log": str(order.log),
        "attempt": order.attempt,
    }


def order_from_json(value: Json) -> TransferOrder:
    return TransferOrder(
        kind=TransferKind(value["kind"]),
        source=address_from_json(value["source"]),
        target=address_from_json(value["target"]),
        regions=[Extent(*extent) for extent in value["regions"]],
        allocated_only=value["allocated_only"],
        dirty=[Extent(*extent) for extent in value["dirty"]],
        parent=_files_from_json(value["parent"]),
        read_target=value["read_target"],
        log=Path(value["log"]),
        attempt=value["attempt"],
    )


def verify_order_to_json(order: VerifyOrder) -> Json:
    return {"disk": address_to_json(order.disk), "digests": _files_to_json(order.digests)}


def verify_order_from_json(value: Json) -> VerifyOrder:
    return VerifyOrder(address_from_json(value["disk"]), _files_from_json(value["digests"]))


def result_to_json(result: TransferResult) -> Json:
    return asdict(result)


def result_from_json(value: Json) -> TransferResult:
    return TransferResult(**value)


def verify_result_to_json(result: VerifyResult) -> Json:
    return asdict(result) | {"bad_extents": [list(extent) for extent in result.bad_extents]}


def verify_result_from_json(value: Json) -> VerifyResult:
    return VerifyResult(**value | {"bad_extents": [Extent(*extent) for extent in value["bad_extents"]]})


def progress_to_json(progress: TransferProgress) -> Json:
    return asdict(progress)


def progress_from_json(value: Json) -> TransferProgress:
    return TransferProgress(**value)


def engine_settings_to_json(settings: EngineSettings) -> Json:
    return asdict(settings) | {
        "libdir": None if settings.libdir is None else str(settings.libdir),
        "state_folder": str(settings.state_folder),
    }


def engine_settings_from_json(value: Json) -> EngineSettings:
    libdir = value["libdir"]
    return EngineSettings(
        **value | {"libdir": None if libdir is None else Path(libdir), "state_folder": Path(value["state_folder"])}
    )
