"""Answers the engine's question which modes to use: the rules over gathered facts, and what failed in this run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from vrepl.errors import DiskError
from vrepl.model import Datastore, Disk, TransportMode, TransportPlan, VirtualMachine
from vrepl.transport.modes import DiskQuestion, ProxyFacts, Side, choose_modes

Facts = Callable[[str], ProxyFacts]
"""Of the proxy, for a site by name."""
Datastores = Callable[[str], Sequence[Datastore]]
"""Of a site by name."""


class RuleAdvisor:
    """Implements ports.TransportAdvisor. Facts and datastores are asked for once per site and run."""

    def __init__(self, facts: Facts, datastores: Datastores) -> None:
        self._ask_facts = facts
        self._ask_datastores = datastores
        self._facts: dict[str, ProxyFacts] = {}
        self._datastores: dict[str, dict[str, Datastore]] = {}
        self._failed: dict[tuple[str, str], dict[TransportMode, str]] = {}
        self._lock = threading.Lock()

    def plan(
        self, side: str, site: str, vm: VirtualMachine, disk: Disk, *, first_run: bool, allowed: Sequence[TransportMode]
    ) -> TransportPlan:
        """As ports.TransportAdvisor.plan."""
        with self._lock:
            if site not in self._facts:
                self._facts[site] = self._ask_facts(site)
                self._datastores[site] = {store.name: store for store in self._ask_datastores(site)}
            facts = self._facts[site]
            store = self._datastores[site].get(disk.datastore) or Datastore("", disk.datastore, "OTHER", 0, 0)
            failed = dict(self._failed.get((site, disk.datastore), {}))
        question = DiskQuestion(Side(side), vm, disk, store, first_run)
        plan = choose_modes(question, facts, allowed, failed)
        if not plan.usable:
            reasons = "; ".join(f"{choice.mode}: {choice.reason}" for choice in plan.ruled_out)
            closed = any(host in facts.closed_nfc_hosts for host in question.hosts)
            raise DiskError(
                f"no transport mode reaches {disk.title} on the {side} side ({reasons})",
                hint="can this machine resolve the ESXi host's name, and do all firewalls between let its NFC port "
                "through? `vrepl check` tries each host"
                if closed
                else "allow another mode in the job's transport, or remove what stands in the way of one",
            )
        return plan

    def failed(self, site: str, datastore: str, mode: TransportMode, reason: str) -> None:
        """As ports.TransportAdvisor.failed."""
        with self._lock:
            self._failed.setdefault((site, datastore), {})[mode] = reason
