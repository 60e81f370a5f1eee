"""A whole night of a large site through `vrepl.admission`, event by event: is it near the best that its limits allow?

10,000 VMs on 300 source hosts go to 200 target hosts through 200 proxies of ten regions: once by one run, once by two
at once that share the limits, half of the VMs each, once by a run of 9,900 beside one of 100, which must not wait for
the other's end. `tests.support.night_of_a_site` says how it is simulated, and what the bound is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from tests.support.night_of_a_site import Night, Size, Vm, lower_bound, vms

SMALL = 100


def run() -> dict[str, object]:
    """The figures; `ratio` and `two_runs_ratio` are to be at most 1.15, `limits_broken` empty."""
    size = Size()
    site = list(vms(size))
    bound, what = lower_bound(site)
    night, makespan, took = nights(site)
    two, together, _ = nights(site[::2], site[1::2])
    beside, mixed, _ = nights(site[SMALL:], site[:SMALL])
    small_bound, _ = lower_bound(site[:SMALL])
    return {
        "vms": size.vms,
        "disks": night.disks_started,
        "proxies": size.proxies,
        "hosts": size.source_hosts + size.target_hosts,
        "makespan_s": round(makespan, 1),
        "lower_bound_s": round(bound, 1),
        "bound_by": what,
        "ratio": round(makespan / bound, 4),
        "two_runs_ratio": round(together / bound, 4),
        "large_and_small_run_ratio": round(mixed / bound, 4),
        "small_run_ends_at_share_of_night": round(beside.ended[1] / mixed, 3),
        "small_run_against_its_own_bound": round(beside.ended[1] / small_bound, 3),
        "rights_lapsed": two.lapsed + beside.lapsed,
        "limits_broken": [*night.broken, *two.broken, *beside.broken][:10],
        "seconds": round(took, 2),
    }


def nights(*runs: Sequence[Vm]) -> tuple[Night, float, float]:
    """The night, its makespan, and the seconds that simulating it took."""
    night, began = Night(*runs), time.perf_counter()
    return night, night.run(), time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
