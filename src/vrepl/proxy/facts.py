"""What a proxy can reach of a site: gathered once per run, used by `planner.modes`.

The proxy tells what it sees of itself under its `sysroot` (`/`, or a copy of what matters): its product uuid, which
is its BIOS uuid if it is a VM, and the LUNs under the names that udev gives them.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vrepl.model import ATTACHED_MARK, DataEngine, VirtualMachine
from vrepl.planner.modes import ProxyFacts, ProxyVm, called

SLOTS_PER_SCSI_CONTROLLER = 15
"""Units 0..15 but 7, which is the controller's own (vSphere Virtual Machine Administration, "SCSI Controllers")."""
SCSI_KINDS = frozenset({"pvscsi", "lsilogic", "lsilogic-sas", "buslogic"})

PORT_TIMEOUT = 3.0
"""Seconds to wait for a host's NFC port."""


class Host(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def connected(self) -> bool: ...

    @property
    def datastore_refs(self) -> frozenset[str]: ...


class SiteView(Protocol):
    """A site, as far as these facts want it."""

    def find_vms_by_bios_uuid(self, bios_uuid: str) -> list[VirtualMachine]: ...

    def hosts(self) -> Sequence[Host]: ...


Reach = Callable[[str, int], None]
"""Connects to a host's port and closes again; raises OSError."""


def reach(host: str, port: int) -> None:
    """Connect from this machine. Raises OSError."""
    with socket.create_connection((host, port), timeout=PORT_TIMEOUT):
        pass


class Machine(Protocol):
    """What a machine that runs movers sees of itself. Asked from any thread."""

    def product_uuid(self) -> uuid.UUID | None:
        """Its SMBIOS uuid, which is its BIOS uuid if it is a VM; None where it cannot be read."""
        ...

    def visible_luns(self) -> frozenset[str]:
        """`naa.` names of the LUNs that it sees."""
        ...

    def closed_ports(self, hosts: Sequence[str], port: int) -> dict[str, str]:
        """Host name -> why its port cannot be reached from there."""
        ...

    def no_devices(self) -> str | None:
        """Why its user may not read and write the disks that are attached there; None: it may."""
        ...


@dataclass(frozen=True, slots=True)
class ThisMachine:
    """The machine that runs the control process, or a folder that stands for one."""

    sysroot: Path = Path("/")
    reach: Reach = reach

    def product_uuid(self) -> uuid.UUID | None:
        return product_uuid(self.sysroot)

    def visible_luns(self) -> frozenset[str]:
        return visible_luns(self.sysroot)

    def closed_ports(self, hosts: Sequence[str], port: int) -> dict[str, str]:
        return closed_ports(hosts, port, self.reach)

    def no_devices(self) -> str | None:
        return why_no_devices(self.sysroot)


def gather_facts(
    proxy: str,
    machine: Machine,
    site: SiteView,
    nfc_port: int,
    *,
    engine: DataEngine = DataEngine.VDDK,
    engine_reason: str = "",
) -> ProxyFacts:
    """Everything that the transport rules ask about one proxy and one site; `engine` is what its movers load."""
    hosts = site.hosts()
    own = machine.product_uuid()
    # Not by listing the site: its VMs may be thousands.
    vms = [] if own is None else [vm for each in _spellings(own) for vm in site.find_vms_by_bios_uuid(str(each))]
    vm, no_vm_reason = find_proxy_vm(proxy, own, vms)
    return ProxyFacts(
        name=proxy,
        vm=vm,
        no_vm_reason=no_vm_reason,
        visible_luns=machine.visible_luns(),
        datastores_of_host={host.name: host.datastore_refs for host in hosts},
        closed_nfc_hosts=machine.closed_ports([host.name for host in hosts if host.connected], nfc_port),
        engine=engine,
        engine_reason=engine_reason,
    )


def product_uuid(sysroot: Path) -> uuid.UUID | None:
    """The machine's SMBIOS uuid; None where it cannot be read (only root may, on most systems)."""
    try:
        return uuid.UUID((sysroot / "sys/class/dmi/id/product_uuid").read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None


def visible_luns(sysroot: Path) -> frozenset[str]:
    """`naa.` names of the LUNs that this machine sees.

    udev names them `wwn-0x<naa>` and `scsi-3<naa>` (systemd, 60-persistent-storage.rules); partitions are left out.
    """
    try:
        names = [entry.name for entry in (sysroot / "dev/disk/by-id").iterdir()]
    except OSError:
        return frozenset()
    found = (re.fullmatch(r"(?:wwn-0x|scsi-3)([0-9a-f]{16}|[0-9a-f]{32})", name) for name in names)
    return frozenset(f"naa.{match[1]}" for match in found if match)


def why_no_devices(sysroot: Path) -> str | None:
    """Why this user may not read and write the machine's disks as block devices, by those that it has; None: it may.

    Udev gives all of them to one group (systemd, 50-udev-default.rules: disk), so one speaks for those to come.
    """
    names = sorted({folder.name for folder in (sysroot / "sys/bus/scsi/devices").glob("*:*:*:*/block/*")})
    for name in names:
        device = sysroot / "dev" / name
        if device.exists() and not os.access(device, os.R_OK | os.W_OK):
            return f"/dev/{name} may not be read and written by this user, and so no disk that is attached"
    return None


def _spellings(machine: uuid.UUID) -> set[uuid.UUID]:
    """SMBIOS stores the first three fields little-endian from 2.6 on, so a guest may read its BIOS uuid with those
    bytes swapped (DMTF DSP0134, 7.2.1; VMware KB 1009458).
    """
    return {machine, uuid.UUID(bytes_le=machine.bytes)}


def find_proxy_vm(proxy: str, machine: uuid.UUID | None, vms: Iterable[VirtualMachine]) -> tuple[ProxyVm | None, str]:
    """The one VM that the proxy is, or why none is. Clones repeat BIOS uuids: two candidates are none."""
    if machine is None:
        return None, (
            f"the product uuid of {called(proxy)} cannot be read (only root may, on most systems), so whether it is "
            "a VM is not known"
        )
    spellings = _spellings(machine)
    found = [vm for vm in vms if _uuid_of(vm) in spellings]
    if not found:
        return None, f"{called(proxy)} is no VM of this site"
    if len(found) > 1:
        names = ", ".join(sorted(vm.name for vm in found))
        return None, f"{len(found)} VMs have the BIOS uuid of {called(proxy)} ({names}), so which it is is not sure"
    vm = found[0]
    return (
        ProxyVm(
            ref=vm.ref,
            name=vm.name,
            host=vm.host,
            datacenter=vm.datacenter,
            free_scsi_slots=free_scsi_slots(vm),
            disk_paths=frozenset(disk.path for disk in vm.disks),
            encrypted=any(disk.encrypted for disk in vm.disks),
            datastore_refs=frozenset(disk.datastore_ref for disk in vm.disks if disk.datastore_ref),
            disk_uuids=any(
                key.lower() == "disk.enableuuid" and value.lower() == "true"
                for key, value in vm.hardware.extra_config.items()
            ),
            has_snapshots=bool(vm.snapshots),
            attached_by_vrepl=sum(key.startswith(ATTACHED_MARK) for key in vm.extra_config),
        ),
        "",
    )


def free_scsi_slots(vm: VirtualMachine) -> int:
    """How many more disks its SCSI controllers take."""
    controllers = {controller.key for controller in vm.hardware.controllers if controller.kind in SCSI_KINDS}
    used = sum(disk.controller_key in controllers for disk in vm.disks)
    return SLOTS_PER_SCSI_CONTROLLER * len(controllers) - used


def closed_ports(hosts: Sequence[str], port: int, reach: Reach) -> dict[str, str]:
    """Host name -> why its port cannot be reached; asked all at once, for a closed firewall answers nothing."""

    def obstacle(host: str) -> str | None:
        try:
            reach(host, port)
        except OSError as error:
            return f"{error.strerror or error} (port {port})"
        return None

    if not hosts:
        return {}
    with ThreadPoolExecutor(max_workers=min(32, len(hosts)), thread_name_prefix="ports") as pool:
        obstacles = dict(zip(hosts, pool.map(obstacle, hosts), strict=True))
    return {host: text for host, text in obstacles.items() if text is not None}


def _uuid_of(vm: VirtualMachine) -> uuid.UUID | None:
    try:
        return uuid.UUID(vm.bios_uuid)
    except ValueError:
        return None
