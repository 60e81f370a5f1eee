"""Which ESXi host of the target takes a replica: one that knows its hardware, the least loaded first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vrepl.errors import NotFoundError, NotReplicableError, VsphereError
from vrepl.model import Hardware
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.inventory import near_names
from vrepl.vsphere.translation import hardware_version

log = logging.getLogger(__name__)

LONGEST_NAME = 80
"""Characters of a VM's name (vSphere Web Services API reference, VirtualMachineConfigSpec.name)."""


@dataclass(frozen=True, slots=True)
class HostOffer:
    """A host that may take replicas; `versions` are the virtual hardware versions that it creates, None: not told."""

    ref: str
    name: str
    vms: int = 0
    """How many it has, those included that this run has just put there."""
    versions: frozenset[int] | None = None
    networks: frozenset[str] = frozenset()


def obstacle(offer: HostOffer, hardware: Hardware, networks: Sequence[str]) -> str | None:
    """Why the host cannot take a VM of this hardware, whose adapters go to these networks; None if it can."""
    if offer.versions and hardware.version and hardware.version not in offer.versions:
        return (
            f"{offer.name} knows hardware versions up to vmx-{max(offer.versions):02d}, not vmx-{hardware.version:02d}"
        )
    missing = sorted(set(networks) - offer.networks)
    if missing:
        return f"{offer.name} has no network {', '.join(missing)}"
    return None


def in_order(offers: Sequence[HostOffer], hardware: Hardware, networks: Sequence[str]) -> list[HostOffer]:
    """Those that can take it, the one with the fewest VMs first.

    Raises NotFoundError for a network that none has, NotReplicableError with each host's reason.
    """
    able = [offer for offer in offers if obstacle(offer, hardware, networks) is None]
    everywhere = frozenset().union(*(offer.networks for offer in offers))
    nowhere = sorted(set(networks) - everywhere)
    if nowhere:
        raise NotFoundError(
            f"no host of the target has network {', '.join(nowhere)}",
            hint=near_names(nowhere[0], everywhere)
            or f"map it in the job's networks; there are {', '.join(sorted(everywhere)) or 'none'}",
        )
    if not able:
        reasons = "; ".join(filter(None, (obstacle(offer, hardware, networks) for offer in offers)))
        raise NotReplicableError(
            f"no host of the target can take it: {reasons}",
            hint="map the networks in the job, or replicate to newer hosts: a VM is not made with older hardware than "
            "its source has",
        )
    return sorted(able, key=lambda offer: (offer.vms, offer.name))


def unknown_guest(offer: HostOffer, guest_id: str) -> NotReplicableError:
    """The error for a guest OS that a host does not know."""
    return NotReplicableError(
        f"host {offer.name} does not know the guest OS {guest_id}",
        hint="replicate to newer hosts, or choose another guest OS in the source's VM options",
    )


class Environments:
    """What hosts can create, as their environment browsers tell; asked once per cluster, version and guest OS."""

    def __init__(self) -> None:
        self._descriptors: dict[str, Any] = {}
        self._guests: dict[tuple[str, int, str], bool] = {}

    def versions(self, browser: Any, host_ref: str) -> frozenset[int] | None:
        """Virtual hardware versions that the host creates; None where it is not told."""
        if browser is None:
            return None
        key = ref_of(browser)
        if key not in self._descriptors:
            try:
                self._descriptors[key] = list(browser.QueryConfigOptionDescriptor() or ())
            except VsphereError as error:
                log.debug("what hosts can create is not told: %s", error)
                self._descriptors[key] = []
        found = frozenset(
            hardware_version(str(one.key))
            for one in self._descriptors[key]
            if one.createSupported is not False
            # Unset on a host's own browser (API reference, VirtualMachineConfigOptionDescriptor.host).
            and (not one.host or host_ref in {ref_of(host) for host in one.host})
        )
        return found or None

    def knows_guest(self, browser: Any, host: Any, version: int, guest_id: str) -> bool:
        """Whether a VM of this hardware version and guest OS can be made there; yes where it is not told."""
        if browser is None or not guest_id:
            return True
        key = ref_of(host), version, guest_id
        if key not in self._guests:
            spec = vim.EnvironmentBrowser.ConfigOptionQuerySpec(
                key=f"vmx-{version:02d}" if version else None, host=host, guestId=[guest_id]
            )
            try:
                option = browser.QueryConfigOptionEx(spec=spec)
            except VsphereError as error:
                log.debug("guest OSes of %s are not told: %s", ref_of(host), error)
                return True
            # Where none matches, the whole list comes (API reference, ConfigOptionQuerySpec.guestId).
            known = {str(one.id).lower() for one in getattr(option, "guestOSDescriptor", None) or ()}
            self._guests[key] = not known or guest_id.lower() in known
        return self._guests[key]


def too_long(name: str) -> NotReplicableError | None:
    """The error for a name that vSphere does not take; None if it does."""
    if len(name) <= LONGEST_NAME:
        return None
    return NotReplicableError(
        f"the replica's name would have {len(name)} characters, and vSphere takes {LONGEST_NAME}: {name}",
        hint="set a shorter replica_name in the job",
    )


def with_placed(offer: HostOffer, placed: Mapping[str, int]) -> HostOffer:
    """The offer, counting what was put there since the inventory was read."""
    return HostOffer(offer.ref, offer.name, offer.vms + placed.get(offer.ref, 0), offer.versions, offer.networks)
