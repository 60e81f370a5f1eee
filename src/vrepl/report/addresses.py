"""What became of a guest's addresses, as one row of a failover's report has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vrepl.model.addresses import AddressChange
from vrepl.report.model import Json


class AddressResult(StrEnum):
    PLANNED = "planned"
    """It would be, or was given, and nobody has seen it yet."""
    SET = "set"
    """The guest reports its new addresses."""
    KEPT = "kept"
    """They could not be set: the guest has those that it had."""
    FAILED = "failed"
    """The guest said that it could not."""
    UNCONFIRMED = "unconfirmed"
    """The guest runs, and did not report them in its time."""


@dataclass(slots=True)
class AddressReport:
    """One guest's."""

    result: AddressResult
    changes: Sequence[AddressChange] = ()
    warnings: Sequence[str] = ()
    reason: str | None = None
    """Of what was not set."""
    hint: str | None = None
    reported: Sequence[str] = ()
    """By the guest, after its power-on."""
    seconds: float | None = None
    """From power-on until it reported them."""

    def to_json(self) -> Json:
        return {
            "result": self.result.value,
            "adapters": [
                {"adapter": one.label, "before": one.before, "after": one.after, "changes": one.changes}
                for one in self.changes
            ],
            "warnings": list(self.warnings),
            "reason": self.reason,
            "hint": self.hint,
            "reported": list(self.reported),
            "seconds": None if self.seconds is None else round(self.seconds, 3),
        }

    @property
    def lines(self) -> list[str]:
        """For people, below the table."""
        after = "" if self.seconds is None else f" after {self.seconds:.0f} s"
        how = {AddressResult.SET: f" (reported{after})", AddressResult.PLANNED: ""}.get(self.result, " (not done)")
        return [f"{one.label}: {one.before} -> {one.after}{how}" for one in self.changes if one.changes]
