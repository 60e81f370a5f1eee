"""Tells what a proxy sees of itself: `python -m vrepl.proxy.facts_program`, a question as JSON in, the answer out."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vrepl.errors import LibraryError
from vrepl.movers.build_id import build_id
from vrepl.proxy.facts import closed_ports, product_uuid, reach, visible_luns, why_no_devices


def facts(question: dict[str, Any]) -> dict[str, Any]:
    """`question`: `sysroot`; `hosts` and `port` to try; `libdir` and `finder`, whose function finds VDDK there."""
    sysroot = Path(question["sysroot"])
    machine = product_uuid(sysroot)
    return {
        "build": build_id(),
        "python": platform.python_version(),
        "host": platform.node(),
        "processors": len(os.sched_getaffinity(0)),
        "compression": find_spec("zstandard") is not None,
        "product_uuid": str(machine) if machine else None,
        "luns": sorted(visible_luns(sysroot)),
        "no_devices": why_no_devices(sysroot),
        "library": _library(question.get("libdir"), question.get("finder")),
        "closed_ports": closed_ports(question.get("hosts", []), question.get("port", 902), reach),
    }


def _library(libdir: str | None, finder: str | None) -> str | None:
    if libdir is None or finder is None:
        return None
    module, _, name = finder.partition(":")
    try:
        return str(getattr(import_module(module), name)(Path(libdir)))
    except LibraryError:
        return None


def main() -> None:
    json.dump(facts(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
