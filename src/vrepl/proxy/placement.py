"""Which of a site's proxies serves a VM.

That which reaches its disks best; of equals, one that has both ends of a disk, so that no stream between two proxies is
needed; of those, that with least to do.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vrepl.errors import ConnectionFailedError, DiskError, MoverError, VreplError
from vrepl.model import Disk, Side, TransportMode, TransportPlan, VirtualMachine
from vrepl.ports import ModeChooser

logger = logging.getLogger("vrepl.proxy")

STRIKES = 3
"""Failures of a proxy's movers in one run from which on no VM is given to it, while others are left."""


class ProxyPlacement:
    """Implements ports.ModeChooser over those of several proxies. A VM stays with its proxy for the run."""

    def __init__(
        self,
        choosers: Mapping[str, ModeChooser],
        proxies_of: Callable[[str], Sequence[str]],
        slots: Mapping[str, int] | None = None,
        *,
        sites: Sequence[str] = (),
    ) -> None:
        """`choosers` by proxy; `proxies_of`: those that serve a site by name, "" is this machine.

        `sites`: that all disks of the run cross between.
        """
        self._choosers = choosers
        self._proxies_of = proxies_of
        self._slots = slots or {}
        self._placed: dict[tuple[str, str], str] = {}
        self._load: Counter[str] = Counter()
        self._strikes: Counter[str] = Counter()
        self._failed_for: set[tuple[tuple[str, str], str]] = set()
        served = [set(proxies_of(site)) for site in sites]
        self._everywhere: set[str] = set.intersection(*served) if served else set()
        self._lock = threading.RLock()

    def plan(
        self,
        side: Side,
        site: str,
        vm: VirtualMachine,
        disk: Disk,
        *,
        first_run: bool,
        allowed: Sequence[TransportMode],
        beside: str | None = None,
    ) -> TransportPlan:
        """As ports.ModeChooser.plan; the plan says which proxy."""

        def over(name: str) -> TransportPlan:
            found = self._choosers[name].plan(side, site, vm, disk, first_run=first_run, allowed=allowed)
            return replace(found, proxy=name)

        key = (site, vm.ref or vm.name)
        with self._lock:
            names = list(self._proxies_of(site))
            placed = self._placed.get(key)
            if placed is not None and (not self._struck_out(placed) or len(names) == 1):
                return over(placed)
            found = over(names[0]) if len(names) == 1 else self._best(key, names, over, allowed, beside)
            self._placed[key] = found.proxy or ""
            self._load[found.proxy or ""] += 1
            return found

    def failed(self, site: str, datastore: str, mode: TransportMode, reason: str) -> None:
        """As ports.ModeChooser.failed, for every proxy of the site."""
        for name in self._proxies_of(site):
            self._choosers[name].failed(site, datastore, mode, reason)

    def proxy_failed(self, site: str, vm: VirtualMachine, proxy: str) -> None:
        """As ports.ModeChooser.proxy_failed."""
        with self._lock:
            self._strikes[proxy] += 1
            key = (site, vm.ref or vm.name)
            if self._placed.get(key) == proxy and len(self._proxies_of(site)) > 1:
                del self._placed[key]
                self._load[proxy] -= 1
                self._failed_for.add((key, proxy))

    def left_on_proxy(self, site: str, vm: VirtualMachine) -> bool:
        """As ports.ModeChooser.left_on_proxy, on any of them."""
        return any(self._choosers[name].left_on_proxy(site, vm) for name in self._proxies_of(site))

    def detached(self, site: str, vm: VirtualMachine, count: int) -> None:
        """As ports.ModeChooser.detached."""
        for name in self._proxies_of(site):
            if self._choosers[name].left_on_proxy(site, vm):
                self._choosers[name].detached(site, vm, count)

    # -- inside; the caller holds the lock -------------------------------------------------------------------------

    def _struck_out(self, name: str) -> bool:
        return self._strikes[name] >= STRIKES

    def _best(
        self,
        key: tuple[str, str],
        names: Sequence[str],
        over: Callable[[str], TransportPlan],
        allowed: Sequence[TransportMode],
        beside: str | None,
    ) -> TransportPlan:
        """One that failed too often only where no other reaches the disk.

        Raises the last error where none of them reaches it, or answers.
        """
        found: list[TransportPlan] = []
        refusal: VreplError | None = None
        struck_out = [name for name in names if self._struck_out(name)]
        for name in [*(name for name in names if name not in struck_out), *struck_out]:
            if found and name in struck_out:
                break
            try:
                found.append(over(name))
            except DiskError as error:
                refusal = error
            except (ConnectionFailedError, MoverError) as error:
                logger.warning("proxy %s is left out of this run: %s", name, error.message)
                self._strikes[name] += STRIKES
                refusal = error
        if not found and refusal is not None:
            raise refusal
        order = {mode: rank for rank, mode in enumerate(allowed)}

        def rank(plan: TransportPlan) -> tuple[int, bool, bool, bool, float]:
            """What failed for this VM comes last among equals: another is worth a try first."""
            name = plan.proxy or ""
            return (
                order.get(plan.modes[0], len(order)),
                (key, name) in self._failed_for,
                name != beside,
                name not in self._everywhere,
                self._load[name] / self._slots.get(name, 1),
            )

        return min(found, key=rank)
