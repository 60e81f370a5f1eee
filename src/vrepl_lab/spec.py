"""What a lab holds, as values: sites, hosts, datastores, VMs, disks, proxies; and the inventory.json made of them.

Sizes are bytes unless a name says MiB.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from vrepl_lab import estate
from vrepl_lab.errors import LabError

MIB = 1024 * 1024
SECTOR = 512
DEFAULT_DISK_MIB = 256
PROXY_VM = "vrepl-proxy"
RESERVED_SCSI_UNIT = 7
FILLED_EXTRA_VMS = 64
"""So many of the `--vms N` extra VMs hold a file system; the rest have empty disks, so that thousands start fast."""

Content = Literal["ext4", "random", "empty"]


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """`fill` is the share of the capacity that holds incompressible file data (ext4) or random bytes (random)."""

    capacity: int
    content: Content = "ext4"
    fill: float = 0.5
    thin: bool = True
    mode: str = "persistent"
    controller: str = "pvscsi"
    bus: int = 0
    unit: int | None = None
    sharing: str = "sharingNone"
    rdm: str | None = None
    zeroed: int = 0
    """Bytes of zeros that are written (allocated) in free space, as a deleted and wiped file leaves them."""

    def __post_init__(self) -> None:
        if self.capacity <= 0 or self.capacity % SECTOR:
            raise LabError(f"a disk of {self.capacity} bytes: the capacity must be a positive multiple of {SECTOR}")
        if not 0 <= self.fill <= 0.9:
            raise LabError(f"a disk cannot be filled to {self.fill:.0%}: at most 90 %")


@dataclass(frozen=True, slots=True)
class VmSpec:
    name: str
    disks: Sequence[DiskSpec] = ()
    power: str = "poweredOn"
    tools: str = "running"
    host: int = 0
    """Position among the site's hosts."""
    datastore: str = "vmfs-01"
    """Without the site's prefix."""
    cbt: bool = False
    folder: str | None = None
    cpus: int = 1
    memory_mib: int = 512
    networks: Sequence[str] = ("VM Network",)
    adapter_kinds: Sequence[str] = ()
    """Of the adapter on each of the networks, such as `e1000e`; vmxnet3 where there is none."""
    firmware: str = "efi"
    guest_id: str = "debian12_64Guest"
    bios_uuid: str | None = None
    """None: made from site and name. Clones repeat it on purpose."""
    extra_config: Mapping[str, str] = field(default_factory=dict)
    pool: str | None = None
    """Path of a resource pool below the cluster's, such as `gold/web`."""
    vapp: str | None = None
    """Name of a vApp in that pool."""
    tags: Sequence[str] = ()
    """As `Category/Tag`."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Custom attributes."""

    @property
    def place(self) -> str:
        """Folder and name: VMs in different folders may have the same name."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


@dataclass(frozen=True, slots=True)
class DatastoreSpec:
    """`name` gets the site's name as prefix (`prod-vmfs-01`); `hosts` are positions, empty means all."""

    name: str
    type: str = "VMFS"
    capacity: int = 1 << 40
    local: bool = False
    hosts: Sequence[int] = ()


DEFAULT_DATASTORES = (
    DatastoreSpec("vmfs-01"),
    DatastoreSpec("vmfs-02"),
    DatastoreSpec("nfs-01", type="NFS"),
)


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """`certificate` is one of certificates.KINDS; `hosts` is how many ESXi hosts there are."""

    vms: Sequence[VmSpec] = ()
    hosts: int = 2
    nfc_limit_mib: int = 48
    datastores: Sequence[DatastoreSpec] = DEFAULT_DATASTORES
    networks: Sequence[str] = ("VM Network", "isolated")
    certificate: str = "good"
    port_groups: Sequence[str] = ("dv-net-01",)
    """Of the distributed switch `SITE-dvs`; none: there is no such switch."""
    opaque_networks: Sequence[str] = ("nsx-segment-01",)
    esx: bool = False
    """A standalone ESXi host instead of a vCenter: no folders, tags, clones, no PrepareForAccess."""
    twin: bool = False
    """A second datacenter with a datastore that has the name of the first one's first."""
    twin_vms: Sequence[str] = ()
    """Names of VMs in it."""


@dataclass(frozen=True, slots=True)
class ProxySpec:
    """A machine that runs data movers: a VM of a site (`vm`), one that sees all LUNs (`luns`), or neither."""

    name: str
    vm: str | None = None
    luns: bool = False
    site: str | None = None
    """A machine of its own, reached over ssh, that serves this site alone; None: the machine that runs the lab."""


DEFAULT_PROXIES = (
    ProxySpec("bare"),
    ProxySpec("hotadd", vm=PROXY_VM),
    ProxySpec("san", luns=True),
)


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A whole lab. `job_vms` are the VMs of job `demo`; None takes every VM of `prod` but the proxy's."""

    prod: SiteSpec
    dr: SiteSpec = SiteSpec()
    proxies: Sequence[ProxySpec] = DEFAULT_PROXIES
    job_vms: Sequence[str] | None = None
    seed: str = "vrepl lab"
    vddk: bool = True
    """Whether proxies have a libvixDiskLib; without one vrepl takes its own engine."""
    job_proxy: str | None = None
    """Of the jobs in the configuration; None: the first proxy."""

    @property
    def sites(self) -> dict[str, SiteSpec]:
        return {"prod": self.prod, "dr": self.dr}

    @property
    def needs_file_systems(self) -> bool:
        return any(disk.content == "ext4" for site in self.sites.values() for vm in site.vms for disk in vm.disks)

    @property
    def names_of_job_vms(self) -> list[str]:
        if self.job_vms is not None:
            return list(self.job_vms)
        proxies = {PROXY_VM, *(proxy.vm for proxy in self.proxies)}
        return [vm.name for vm in self.prod.vms if vm.name not in proxies]

    def with_machines(self, source: int, target: int) -> LabSpec:
        """The same with so many proxies at each site that are machines of their own, and VMs there; the job's."""
        names = {"prod": source, "dr": target}
        machines = [
            ProxySpec(f"{site}-proxy-{number}", vm=f"{site}-proxy-{number}", site=site)
            for site, count in names.items()
            for number in range(1, count + 1)
        ]

        def grown(site: str) -> SiteSpec:
            spec = self.sites[site]
            added = [proxy_vm(machine.name) for machine in machines if machine.site == site]
            return replace(spec, vms=(*spec.vms, *added))

        return replace(self, prod=grown("prod"), dr=grown("dr"), proxies=(*self.proxies, *machines))

    @classmethod
    def of_vms(cls, *vms: VmSpec, job_vms: Sequence[str] | None = None) -> LabSpec:
        """A lab for a test: these VMs in `prod`, and the proxy VM in both sites."""
        proxy = proxy_vm()
        return cls(prod=SiteSpec(vms=(*vms, proxy)), dr=SiteSpec(vms=(proxy,)), job_vms=job_vms)


def proxy_vm(name: str = PROXY_VM) -> VmSpec:
    """The VM behind a proxy; that of `hotadd` has the same BIOS uuid in both sites, which are different vCenters."""
    return VmSpec(
        name,
        disks=(DiskSpec(8 * MIB, content="empty"),),
        bios_uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        cpus=2,
        memory_mib=2048,
        extra_config={"disk.EnableUUID": "TRUE"},
    )


def demo_spec(disk_mib: int = DEFAULT_DISK_MIB, extra_vms: int = 0, *, vddk: bool = True) -> LabSpec:
    """What `vrepl lab up` seeds.

    `disk_mib` is the size of web-01's disk in MiB (at least 16); db-01's two and app-01's follow it at a quarter, a
    half and a quarter. `extra_vms` adds small VMs vm-0001…, each with a 16 MiB disk. `vddk`: as in LabSpec.
    """
    if disk_mib < 16:
        raise LabError(f"--disk-mib {disk_mib}: at least 16, so that a file system fits")
    if extra_vms < 0:
        raise LabError(f"--vms {extra_vms}: not a number of VMs")
    quarter, half = max(disk_mib // 4, 8) * MIB, max(disk_mib // 2, 8) * MIB
    seeded = (
        VmSpec("web-01", disks=(DiskSpec(disk_mib * MIB, fill=0.78, thin=False),), host=0, cpus=2),
        VmSpec(
            "db-01",
            disks=(
                DiskSpec(quarter, fill=0.3),
                DiskSpec(half, fill=0.4, thin=False, zeroed=min(4 * MIB, half // 8), unit=1),
            ),
            host=1,
            memory_mib=1024,
        ),
        VmSpec(
            "app-01", disks=(DiskSpec(quarter, fill=0.3),), power="poweredOff", tools="notRunning", datastore="nfs-01"
        ),
        VmSpec(
            "legacy-01",
            disks=(
                DiskSpec(16 * MIB, fill=0.2, controller="lsilogic"),
                DiskSpec(16 * MIB, content="empty", mode="independent_persistent", controller="lsilogic", unit=1),
            ),
            host=1,
            firmware="bios",
        ),
    )
    extra = tuple(
        VmSpec(
            f"vm-{number:04}",
            disks=(DiskSpec(16 * MIB, content="ext4" if number <= FILLED_EXTRA_VMS else "empty", fill=0.25),),
            host=number % 2,
            datastore="vmfs-02",
            memory_mib=256,
            **estate.places(number),
        )
        for number in range(1, extra_vms + 1)
    )
    spec = LabSpec.of_vms(*seeded, *extra, job_vms=("web-01", "db-01", "app-01"))
    return replace(spec, prod=replace(spec.prod, hosts=2), vddk=vddk)


def estate_spec(vms: int = 300) -> LabSpec:
    """Many VMs in folders, pools and vApps, with tags and custom attributes, to select from; it starts in seconds.

    Their disks of 1 MiB are empty. Job `demo` takes the first three.
    """
    made = tuple(
        VmSpec(
            f"vm-{number:04}",
            disks=(DiskSpec(MIB, content="empty"),),
            power="poweredOff" if number % 7 == 0 else "poweredOn",
            host=number % 2,
            memory_mib=64,
            **estate.places(number),
        )
        for number in range(1, vms + 1)
    )
    return LabSpec.of_vms(*made, job_vms=[vm.name for vm in made[:3]])


def standalone(spec: LabSpec, sites: str | None) -> LabSpec:
    """The same lab with ESXi hosts in place of vCenters: of `prod`, `dr` or `both`; None changes nothing."""
    prod, dr = sites in ("prod", "both"), sites in ("dr", "both")
    return replace(spec, prod=replace(spec.prod, esx=prod), dr=replace(spec.dr, esx=dr))


def stable_uuid(*words: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "vrepl-lab:" + "/".join(words)))


def naa(*words: str) -> str:
    """A LUN's name in the form of SCSI's NAA 6 (32 hex digits), as VMFS extents carry it."""
    return "naa.6000c29" + hashlib.sha256("/".join(words).encode()).hexdigest()[:25]


def static_mac(*words: str) -> str:
    """In 00:50:56:00:00:00 - 00:50:56:3F:FF:FF, the range that vSphere accepts for static addresses."""
    digest = hashlib.sha256("/".join(words).encode()).digest()
    return f"00:50:56:{digest[0] & 0x3F:02x}:{digest[1]:02x}:{digest[2]:02x}"


def host_addresses(site: str, count: int, network: tuple[int, int]) -> list[str]:
    """Loopback addresses for a site's ESXi hosts: 127.A.B.11 on for prod, 127.A.B.101 on for dr."""
    first = 11 if site == "prod" else 101
    return [f"127.{network[0]}.{network[1]}.{first + position}" for position in range(count)]


def inventory(
    site: str, spec: SiteSpec, *, seed: str, network: tuple[int, int], images: Mapping[tuple[str, int], Path]
) -> dict[str, Any]:
    """inventory.json of one site (docs/lab-internals.md, section 3).

    `images`: raw ones by (folder and name, disk index).
    """
    hosts = host_addresses(site, 1 if spec.esx else spec.hosts, network)
    datastores = [datastore_entry(site, datastore, seed, hosts) for datastore in spec.datastores]
    shared = [entry for entry in datastores if entry["naa"]]
    places = [vm.place for vm in spec.vms]
    if len(set(places)) != len(places):
        raise LabError(f"site {site}: VM names are not unique in their folders")
    return {
        "datacenter": f"{site}-dc",
        "cluster": f"{site}-cluster",
        "hosts": [
            {
                "name": host,
                "nfc_limit_mib": spec.nfc_limit_mib,
                "luns": [entry["naa"] for entry in shared if host in entry["hosts"]],
            }
            for host in hosts
        ],
        "datastores": datastores,
        "networks": list(spec.networks),
        "nfc_port_hint": 0,
        "instance_uuid_seed": f"{seed}/{site}",
        "vms": [vm_entry(site, vm, seed, hosts, images) for vm in spec.vms],
        "distributed_switch": {"name": f"{site}-dvs", "port_groups": list(spec.port_groups)}
        if spec.port_groups
        else None,
        "opaque_networks": list(spec.opaque_networks),
        "esx": spec.esx,
        "categories": estate.categories(spec.vms),
        "twin": estate.twin(site, spec, host_addresses(site, spec.hosts + 1, network)[-1]) if spec.twin else None,
    }


def datastore_entry(site: str, spec: DatastoreSpec, seed: str, hosts: Sequence[str]) -> dict[str, Any]:
    name = f"{site}-{spec.name}"
    return {
        "name": name,
        "type": spec.type,
        "naa": naa(seed, name) if spec.type == "VMFS" else None,
        "local": spec.local,
        "capacity": spec.capacity,
        "hosts": [hosts[position] for position in spec.hosts] if spec.hosts else list(hosts),
    }


def vm_entry(
    site: str, vm: VmSpec, seed: str, hosts: Sequence[str], images: Mapping[tuple[str, int], Path]
) -> dict[str, Any]:
    address = hashlib.sha256(f"{site}/{vm.place}".encode()).digest()
    return {
        "name": vm.name,
        "uuid": vm.bios_uuid or stable_uuid(seed, site, vm.place, "bios"),
        "instance_uuid": stable_uuid(seed, site, vm.place, "instance"),
        "host": hosts[vm.host % len(hosts)],
        "datastore": f"{site}-{vm.datastore}",
        "cpus": vm.cpus,
        "memory_mib": vm.memory_mib,
        "guest_id": vm.guest_id,
        "firmware": vm.firmware,
        "power": vm.power,
        "tools": vm.tools,
        "cbt": vm.cbt,
        "folder": vm.folder,
        "guest_host": vm.name,
        "guest_ip": f"10.{address[0]}.{address[1]}.{address[2] % 250 + 2}",
        "nics": [
            {"network": name, "type": kind or "vmxnet3", "mac": static_mac(seed, site, vm.place, str(position))}
            for position, (name, kind) in enumerate(zip_longest(vm.networks, vm.adapter_kinds[: len(vm.networks)]))
        ],
        "cdrom": True,
        "extra_config": dict(vm.extra_config),
        "pool": vm.pool or "",
        "vapp": vm.vapp or "",
        "tags": list(vm.tags),
        "attributes": dict(vm.attributes),
        "disks": [
            disk_entry(disk, unit, images.get((vm.place, index))) for index, (disk, unit) in enumerate(with_units(vm))
        ],
    }


def with_units(vm: VmSpec) -> list[tuple[DiskSpec, int]]:
    """Each disk with its unit number: the one it names, else the next free one of its controller."""
    taken = {(disk.controller, disk.bus, disk.unit) for disk in vm.disks if disk.unit is not None}
    placed = []
    for disk in vm.disks:
        unit = disk.unit
        if unit is None:
            unit = 0
            while unit == RESERVED_SCSI_UNIT or (disk.controller, disk.bus, unit) in taken:
                unit += 1
            taken.add((disk.controller, disk.bus, unit))
        placed.append((disk, unit))
    return placed


def disk_entry(disk: DiskSpec, unit: int, image: Path | None) -> dict[str, Any]:
    return {
        "capacity": disk.capacity,
        "image": str(image) if image else None,
        "mode": disk.mode,
        "thin": disk.thin,
        "controller": disk.controller,
        "bus": disk.bus,
        "unit": unit,
        "sharing": disk.sharing,
        "rdm": disk.rdm,
    }
