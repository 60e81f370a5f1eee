"""What tables of other people's clients have in common: their verdicts are written down, and nothing panics."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from vrepl_lab.lab import Lab

INTERNALS = Path(__file__).parents[2] / "docs" / "lab-internals.md"


class Row(Protocol):
    @property
    def differs(self) -> str: ...


def assert_no_panic(lab: Lab) -> None:
    log = (lab.folder / "prod" / "sim.log").read_text()
    assert "panic" not in log, log[log.index("panic") :][:2000]


def assert_written_down(rows: Iterable[Row]) -> None:
    """Where the lab is known to differ from vSphere, the page on it says so."""
    internals = INTERNALS.read_text()
    for row in rows:
        assert not row.differs or row.differs in internals
