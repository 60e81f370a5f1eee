"""Whether this machine's clock is right: restore points are dated by it, and retention counts in days."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Protocol

from vrepl.errors import VreplError

LIMIT = dt.timedelta(minutes=10)
"""Far beyond what a clock without NTP drifts between two looks at it; Kerberos, which vCenters live with, allows 5."""


class Clocked(Protocol):
    """A site that tells its time."""

    @property
    def name(self) -> str: ...

    def current_time(self) -> dt.datetime: ...


def refuse_wrong_clock(clock: Callable[[], dt.datetime], sites: Sequence[Clocked], note: Callable[[str], None]) -> None:
    """Raises VreplError where this machine's clock is that of none of the sites; one that differs alone is told of.

    Before anything is made: what is dated wrongly once stays in the order of restore points for good.
    """
    off = {}
    for site in {site.name: site for site in sites}.values():
        before = clock()
        theirs = site.current_time()
        here = before + (clock() - before) / 2
        if abs(here - theirs) > LIMIT:
            off[site.name] = here - theirs
    if not off:
        return
    words = " and ".join(f"{_words(difference)} that of site {name}" for name, difference in off.items())
    if len(off) == len({site.name for site in sites}):
        raise VreplError(
            f"the clock of this machine is {words}: restore points would be dated wrongly",
            hint="set the clock that is wrong, this machine's or the sites', and keep it right by NTP",
        )
    note(f"the clock of this machine is {words}; what is removed goes by both")


def _words(difference: dt.timedelta) -> str:
    minutes = round(abs(difference).total_seconds() / 60)
    amount = f"{minutes} minutes" if minutes < 180 else f"{minutes // 60} hours"
    return f"{amount} {'ahead of' if difference > dt.timedelta() else 'behind'}"
