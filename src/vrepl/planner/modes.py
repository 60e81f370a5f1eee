"""Which transport modes can reach a disk from a proxy, in the job's order, each with its reason. Pure.

Sources: VDDK Programming Guide, "Virtual Disk Transport Methods" and its "Limitations" sections (SAN needs VMFS or RDM
and thick disks for writing; HotAdd needs the proxy in the same datacenter, the datastore visible to its host, no
IDE, at most 62 TB since vSphere 5.5); VMware KB 2048138 (sizes); release notes of VDDK 6.5 and newer (encryption).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vrepl.model import DataEngine, Datastore, Disk, ModeChoice, Side, TransportMode, TransportPlan, VirtualMachine

HOTADD_CAPACITY_LIMIT = 62 * 1024**4
"""Bytes."""


@dataclass(frozen=True, slots=True)
class ProxyVm:
    """The proxy as a VM of the site whose disks it is to reach."""

    ref: str
    name: str
    host: str
    datacenter: str
    free_scsi_slots: int
    disk_paths: frozenset[str] = frozenset()
    encrypted: bool = False
    datastore_refs: frozenset[str] = frozenset()
    """MoRefs of the datastores that its own disks lie on."""
    disk_uuids: bool = False
    """Whether its guest is told which virtual disk is which (`disk.EnableUUID`)."""
    has_snapshots: bool = False
    replicated_by: str = ""
    """The job that names it, if there is one: its runs snapshot the proxy."""
    attached_by_vrepl: int = 0
    """How many disks hang there that vrepl attached without VDDK, by their marks: in use, or left by dead runs."""


THIS_MACHINE = "this machine"
"""The name of the proxy that no job named: the machine that runs vrepl."""


def called(proxy: str) -> str:
    """How a sentence names a proxy."""
    return proxy if proxy == THIS_MACHINE else f"proxy {proxy}"


@dataclass(frozen=True, slots=True)
class ProxyFacts:
    """What a proxy can reach of one site. Gathered once per run; pure data to the rules."""

    name: str
    vm: ProxyVm | None = None
    no_vm_reason: str = "the proxy is no VM of this site"
    visible_luns: frozenset[str] = frozenset()
    """`naa.` names, from /dev/disk/by-id."""
    datastores_of_host: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """ESXi host name -> MoRefs of the datastores it mounts."""
    closed_nfc_hosts: Mapping[str, str] = field(default_factory=dict)
    """ESXi host name -> why its NFC port cannot be reached."""
    engine: DataEngine = DataEngine.VDDK
    engine_reason: str = ""
    """Why this one."""


@dataclass(frozen=True, slots=True)
class DiskQuestion:
    """One side of one disk: what the rules look at."""

    side: Side
    vm: VirtualMachine
    """A replica that is still to be made has neither `ref` nor `datacenter`, and a `host` only if the job names one."""
    disk: Disk
    datastore: Datastore
    first_run: bool
    """Nothing was ever sealed: the target's disk is a base without snapshots."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Candidate ESXi hosts: the VM's own, or all that mount the datastore where a replica is still to be made."""
        return (self.vm.host,) if self.vm.host else self.datastore.hosts


def choose_modes(
    question: DiskQuestion,
    proxy: ProxyFacts,
    allowed: Sequence[TransportMode],
    failed: Mapping[TransportMode, str] | None = None,
) -> TransportPlan:
    """Every mode of VDDK either usable (in the job's order) or ruled out, with the reason.

    `failed`: modes that failed for this proxy and datastore earlier in this run.
    """
    usable: list[ModeChoice] = []
    ruled_out: list[ModeChoice] = []
    for mode in allowed:
        failure = (failed or {}).get(mode)
        obstacle = f"failed earlier in this run ({failure})" if failure else _obstacle(mode, question, proxy)
        if obstacle is None:
            at_once = proxy.vm.free_scsi_slots if proxy.vm and mode is TransportMode.HOTADD else None
            usable.append(ModeChoice(mode, _merit(mode, question, proxy) + _warning(question), at_once))
        else:
            ruled_out.append(ModeChoice(mode, obstacle))
    for mode in TransportMode:
        if mode not in allowed:
            why = (
                "data would cross unencrypted and the job does not list it"
                if mode is TransportMode.NBD
                else ("the job does not list it")
            )
            ruled_out.append(ModeChoice(mode, why))
    return TransportPlan(tuple(usable), tuple(ruled_out), proxy.engine)


OWN_MODES = (TransportMode.HOTADD, TransportMode.NBDSSL, TransportMode.NBD)
"""What vrepl's own engine reaches disks over."""


def _obstacle(mode: TransportMode, question: DiskQuestion, proxy: ProxyFacts) -> str | None:
    if proxy.engine is DataEngine.OWN and mode not in OWN_MODES:
        return f"it takes VDDK ({proxy.engine_reason})"
    obstacle = _OBSTACLES[mode](question, proxy)
    if obstacle is None and proxy.engine is DataEngine.OWN and mode is TransportMode.HOTADD and proxy.vm is not None:
        return own_hotadd_obstacle(proxy.vm)
    return obstacle


def own_hotadd_obstacle(vm: ProxyVm) -> str | None:
    """What keeps vrepl's own engine from attaching disks to a proxy that VDDK would take."""
    if not vm.disk_uuids:
        return (
            f"the proxy VM {vm.name} does not tell its guest which disk is which: set disk.EnableUUID = TRUE while it "
            "is off (empty disks cannot be told apart by what is on them)"
        )
    if vm.replicated_by:
        job = vm.replicated_by
        return f"the proxy VM {vm.name} is replicated by job {job}, whose snapshots take along what hangs there"
    if vm.has_snapshots:
        return f"the proxy VM {vm.name} has snapshots, and another would take along what hangs on it"
    return None


def _merit(mode: TransportMode, question: DiskQuestion, proxy: ProxyFacts) -> str:
    merit = _MERITS[mode](question, proxy)
    if proxy.engine is DataEngine.VDDK:
        return merit
    return f"{merit}, by vrepl's own engine ({proxy.engine_reason}); nothing blocks a migration of the VM meanwhile"


def _warning(question: DiskQuestion) -> str:
    """What the operator should know of a mode that is tried all the same; no source says that it cannot work."""
    if question.side is Side.TARGET and question.datastore.vsan_esa:
        return (
            f"; warning: datastore {question.datastore.name} is vSAN ESA, of which no document says that VDDK "
            "writes there: verify the first restore point"
        )
    return ""


def _san_obstacle(question: DiskQuestion, proxy: ProxyFacts) -> str | None:
    store, disk = question.datastore, question.disk
    if store.kind != "VMFS":
        return f"datastore {store.name} is {store.kind}, and SAN needs VMFS on LUNs"
    if store.local and not store.luns:
        return f"datastore {store.name} is local to its host"
    unseen = sorted(set(store.luns) - proxy.visible_luns)
    if unseen or not store.luns:
        return (
            f"{called(proxy.name)} does not see the LUN behind {store.name} ({', '.join(unseen) or 'no LUN is known'})"
        )
    if disk.encrypted:
        return "the disk is encrypted"
    if question.side is Side.TARGET:
        if not question.first_run:
            return "writing over SAN is only possible before the first restore point: later writes go to a delta disk"
        if disk.thin:
            return "writing over SAN needs a thick disk, and this one is thin"
    return None


def _hotadd_obstacle(question: DiskQuestion, proxy: ProxyFacts) -> str | None:
    disk, store, vm = question.disk, question.datastore, proxy.vm
    if vm is None:
        return proxy.no_vm_reason
    if question.vm.datacenter and vm.datacenter != question.vm.datacenter:
        return f"the proxy VM {vm.name} is in datacenter {vm.datacenter}, the disk in {question.vm.datacenter}"
    if store.ref not in proxy.datastores_of_host.get(vm.host, frozenset()):
        return f"host {vm.host} of the proxy VM {vm.name} does not mount datastore {store.name}"
    if question.side is Side.TARGET and store.kind == "vsan" and store.ref not in vm.datastore_refs:
        # VMware KB 306343: only a proxy that itself lies on vSAN writes to vSAN by HotAdd. That another vSAN datastore
        # than the disk's does not do is a guess, on the safe side.
        return f"datastore {store.name} is vSAN, and the proxy VM {vm.name} does not lie on it"
    if store.kind == "NFS" and any(host != vm.host for host in question.hosts):
        return f"datastore {store.name} is NFS 3, which wants the proxy VM on the VM's {_host_words(question)}"
    if question.vm.ref == vm.ref:
        return "it is a disk of the proxy VM itself"
    if disk.path and disk.path in vm.disk_paths:
        return f"it hangs on the proxy VM {vm.name} already: another client has it open, or one that died left it there"
    if _controller_kind(question) == "ide":
        return "it is on an IDE controller"
    if disk.capacity > HOTADD_CAPACITY_LIMIT:
        return "it is larger than 62 TB"
    if disk.encrypted and not vm.encrypted:
        return f"the disk is encrypted and the proxy VM {vm.name} is not"
    if vm.free_scsi_slots < 1:
        return f"the proxy VM {vm.name} has no free SCSI slot"
    return None


def _network_obstacle(question: DiskQuestion, proxy: ProxyFacts) -> str | None:
    for host in question.hosts:
        closed = proxy.closed_nfc_hosts.get(host)
        if closed:
            return f"the NFC port of ESXi host {host} cannot be reached: {closed}"
    return None


def _controller_kind(question: DiskQuestion) -> str:
    for controller in question.vm.hardware.controllers:
        if controller.key == question.disk.controller_key:
            return controller.kind
    return "unknown"


def _san_merit(question: DiskQuestion, proxy: ProxyFacts) -> str:
    return f"{called(proxy.name)} sees the LUN behind {question.datastore.name}"


def _hotadd_merit(question: DiskQuestion, proxy: ProxyFacts) -> str:
    name = proxy.vm.name if proxy.vm else proxy.name
    return f"the proxy is VM {name}, whose host mounts {question.datastore.name}"


def _host_words(question: DiskQuestion) -> str:
    hosts = question.hosts
    return f"host {hosts[0]}" if len(hosts) == 1 else f"host, which may be any of {', '.join(hosts) or 'none'}"


def _network_words(question: DiskQuestion) -> str:
    way = "from" if question.side is Side.SOURCE else "to"
    hosts = question.hosts
    if len(hosts) == 1:
        return f"over the network {way} ESXi host {hosts[0]}"
    return f"over the network {way} an ESXi host that mounts {question.datastore.name}"


def _nbdssl_merit(question: DiskQuestion, proxy: ProxyFacts) -> str:
    del proxy
    return f"{_network_words(question)}, encrypted"


def _nbd_merit(question: DiskQuestion, proxy: ProxyFacts) -> str:
    del proxy
    return f"{_network_words(question)}, unencrypted, as the job allows"


Rule = Callable[[DiskQuestion, ProxyFacts], str | None]
Merit = Callable[[DiskQuestion, ProxyFacts], str]
_OBSTACLES: Mapping[TransportMode, Rule] = {
    TransportMode.SAN: _san_obstacle,
    TransportMode.HOTADD: _hotadd_obstacle,
    TransportMode.NBDSSL: _network_obstacle,
    TransportMode.NBD: _network_obstacle,
}
_MERITS: Mapping[TransportMode, Merit] = {
    TransportMode.SAN: _san_merit,
    TransportMode.HOTADD: _hotadd_merit,
    TransportMode.NBDSSL: _nbdssl_merit,
    TransportMode.NBD: _nbd_merit,
}
