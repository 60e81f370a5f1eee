"""What a user lacks, in words: every privilege by name, where it is missing, and what it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vrepl.checks.facts import LackedPrivilege
from vrepl.checks.result import CheckResult, Status
from vrepl.errors import VreplError


def check_privileges(
    title: str, ask: Callable[[], Sequence[LackedPrivilege]], lacking_is: Status = Status.FAILED
) -> CheckResult:
    try:
        lacking = ask()
    except VreplError as error:
        return CheckResult.failed(title, error)
    if not lacking:
        return CheckResult.ok(title, "complete")
    return CheckResult(title, lacking_is, *lacking_words(lacking))


def lacking_words(lacking: Sequence[LackedPrivilege]) -> tuple[str, str]:
    """Detail and hint."""
    places: dict[str, list[str]] = {}
    for one in lacking:
        places.setdefault(one.privilege, []).append(one.entity)
    reasons = {one.privilege: one.why for one in lacking}
    return (
        "; ".join(f"{privilege} is missing on {_some(entities)}" for privilege, entities in places.items()),
        "add to the user's role: " + "; ".join(f"{privilege} ({why})" for privilege, why in reasons.items()),
    )


def _some(entities: Sequence[str]) -> str:
    more = f" and {len(entities) - 2} more" if len(entities) > 2 else ""
    return ", ".join(entities[:2]) + more
