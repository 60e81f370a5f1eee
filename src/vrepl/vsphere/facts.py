"""Facts of ESXi hosts, for transport selection and `vrepl check`."""

from __future__ import annotations

from dataclasses import dataclass

from vrepl.vsphere import collector
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.session import Session
from vrepl.vsphere.translation import Names

_PATHS = (
    "name",
    "config.product.version",
    "config.product.build",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
    "datastore",
)


@dataclass(frozen=True, slots=True)
class EsxiHost:
    """`name` is what vCenter knows it by, and what NBD connects to."""

    ref: str
    name: str
    version: str
    """Such as `8.0.3`; "" if it cannot be read."""
    build: str
    connected: bool
    in_maintenance: bool
    datastores: tuple[str, ...]
    """Names of those that it mounts."""
    datastore_refs: frozenset[str] = frozenset()
    """The same by MoRef: names repeat across datacenters."""

    @property
    def nfc_memory_mib(self) -> int:
        """The host's limit for the sum of all NFC buffers: 48 MiB before ESXi 8, 96 MiB from then on."""
        major = self.version.partition(".")[0]
        return 96 if major.isdecimal() and int(major) >= 8 else 48


def read_hosts(session: Session, names: Names) -> list[EsxiHost]:
    """Every host, by name."""
    hosts = [
        EsxiHost(
            ref=one.ref,
            name=names.name(one.ref),
            version=str(one.get("config.product.version", "")),
            build=str(one.get("config.product.build", "")),
            connected=str(one.get("runtime.connectionState", "")) == "connected",
            in_maintenance=bool(one.get("runtime.inMaintenanceMode", False)),
            datastores=tuple(sorted(names.name(ref_of(store)) for store in one.get("datastore", []))),
            datastore_refs=frozenset(ref_of(store) for store in one.get("datastore", [])),
        )
        for one in collector.below(session, {vim.HostSystem: _PATHS})
    ]
    return sorted(hosts, key=lambda host: host.name)
