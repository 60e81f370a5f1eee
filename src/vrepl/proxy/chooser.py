"""Answers the engine's question which modes to use: the rules over gathered facts, and what failed in this run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from vrepl.errors import DiskError
from vrepl.model import Datastore, Disk, Side, TransportMode, TransportPlan, VirtualMachine
from vrepl.planner.datastores import datastore_of_disk
from vrepl.planner.modes import DiskQuestion, ProxyFacts, ProxyVm, choose_modes

Facts = Callable[[str], ProxyFacts]
"""Of the proxy, for a site by name."""
Datastores = Callable[[str], Sequence[Datastore]]
"""Of a site by name."""


class RuleModeChooser:
    """Implements ports.ModeChooser. Facts and datastores are asked for once per site and run."""

    def __init__(self, facts: Facts, datastores: Datastores) -> None:
        self._ask_facts = facts
        self._ask_datastores = datastores
        self._facts: dict[str, ProxyFacts] = {}
        self._datastores: dict[str, Sequence[Datastore]] = {}
        self._failed: dict[tuple[str, str], dict[TransportMode, str]] = {}
        self._lock = threading.Lock()

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
        """As ports.ModeChooser.plan: of one proxy, there is no choice."""
        del beside
        with self._lock:
            facts = self._facts_of(site)
            stores = self._datastores[site]
            store = datastore_of_disk(disk, stores, datacenter=vm.datacenter, host=vm.host) or Datastore(
                disk.datastore_ref, disk.datastore, "OTHER", 0, 0
            )
            failed = self._failed.get((site, disk.datastore), {}) | self._failed.get((site, store.ref), {})
        question = DiskQuestion(side, vm, disk, store, first_run)
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
        """As ports.ModeChooser.failed; `datastore` by MoRef, or by name where that is all that is known."""
        with self._lock:
            self._failed.setdefault((site, datastore), {})[mode] = reason

    def proxy_failed(self, site: str, vm: VirtualMachine, proxy: str) -> None:
        """As ports.ModeChooser.proxy_failed: there is no other."""

    def left_on_proxy(self, site: str, vm: VirtualMachine) -> bool:
        """As ports.ModeChooser.left_on_proxy."""
        with self._lock:
            return bool(_files_of(vm, self._facts_of(site).vm))

    def detached(self, site: str, vm: VirtualMachine, count: int) -> None:
        """As ports.ModeChooser.detached."""
        with self._lock:
            facts = self._facts.get(site)
            if facts is None or facts.vm is None:
                return
            left = _files_of(vm, facts.vm)
            if left:
                slots = facts.vm.free_scsi_slots + count
                proxy = replace(facts.vm, disk_paths=facts.vm.disk_paths - left, free_scsi_slots=slots)
                self._facts[site] = replace(facts, vm=proxy)

    def _facts_of(self, site: str) -> ProxyFacts:
        """The caller holds the lock."""
        if site not in self._facts:
            self._facts[site] = self._ask_facts(site)
            self._datastores[site] = tuple(self._ask_datastores(site))
        return self._facts[site]


def _files_of(vm: VirtualMachine, proxy: ProxyVm | None) -> frozenset[str]:
    """Disks of the proxy VM that lie where this VM's do: any link of a chain may hang there."""
    if proxy is None or vm.ref == proxy.ref:
        return frozenset()
    if vm.datacenter and proxy.datacenter and vm.datacenter != proxy.datacenter:
        return frozenset()  # another datacenter's paths may read the same, and HotAdd does not reach across
    folders = {_folder_of(path) for disk in vm.disks for path in (disk.path, disk.base_path) if path}
    return frozenset(path for path in proxy.disk_paths if _folder_of(path) in folders)


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]
