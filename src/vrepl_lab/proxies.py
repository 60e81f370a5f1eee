"""The machines that run data movers: per proxy a VDDK folder and what that machine sees of itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vrepl_lab.build import Built
from vrepl_lab.spec import ProxySpec, stable_uuid


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """One `server` line of lab.conf: where the VDDK control port of a vCenter is."""

    name: str
    port: int
    control_host: str
    control_port: int
    sha1_thumbprint: str
    settings: Path

    def line(self) -> str:
        return (
            f"server {self.name} {self.port} {self.control_host} {self.control_port} "
            f"{self.sha1_thumbprint} {self.settings}"
        )


def proxy_folder(lab: Path, name: str) -> Path:
    return lab / "proxies" / name


def libdir(lab: Path, name: str) -> Path:
    """What a configuration calls the VDDK folder."""
    return proxy_folder(lab, name) / "vddk"


def make_sysroot(lab: Path, proxy: ProxySpec, *, bios_uuid: str | None, luns: Iterable[str], seed: str) -> None:
    """What the machine sees of itself: its product uuid, and the LUNs under the names that udev gives them.

    A machine that is no VM of the lab has a uuid of its own. `luns` are `naa.` names; udev's are `wwn-0x…` and
    `scsi-3…` (systemd's 60-persistent-storage.rules).
    """
    sysroot = proxy_folder(lab, proxy.name) / "sysroot"
    dmi = sysroot / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    product = bios_uuid or stable_uuid(seed, "proxy", proxy.name)
    (dmi / "product_uuid").write_text(f"{product}\n")
    (dmi / "product_name").write_text("VMware Virtual Platform\n" if bios_uuid else "Lab Server\n")
    by_id = sysroot / "dev/disk/by-id"
    by_id.mkdir(parents=True)
    if not proxy.luns:
        return
    for position, lun in enumerate(sorted(luns)):
        device = sysroot / "dev" / f"sd{chr(ord('b') + position)}"
        device.touch()
        digits = lun.removeprefix("naa.")
        for name in (f"wwn-0x{digits}", f"scsi-3{digits}"):
            (by_id / name).symlink_to(f"../../{device.name}")


def install_vddk(lab: Path, proxy: str, built: Built, servers: Sequence[ServerEntry]) -> None:
    folder = libdir(lab, proxy) / "lib64"
    folder.mkdir(parents=True)
    for library in (built.library, built.poisoned_libcrypto):
        shutil.copy2(library, folder / library.name)
    (folder / "libvixDiskLib.so").symlink_to(built.library.name)
    lines = [f"proxy {proxy}", *(entry.line() for entry in servers)]
    (folder / "lab.conf").write_text("\n".join(lines) + "\n")


def bios_uuid_of(vm: str, inventories: Mapping[str, Mapping[str, object]]) -> str | None:
    """The BIOS uuid of the first VM of that name in any site's inventory."""
    for inventory in inventories.values():
        entries = inventory["vms"]
        assert isinstance(entries, list)
        for entry in entries:
            if entry["name"] == vm:
                return str(entry["uuid"])
    return None
