"""What a vCenter holds beside hosts, datastores and VMs: tags, a second datacenter, an estate to select VMs from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vrepl_lab.spec import SiteSpec, VmSpec

GIB = 1 << 30
SINGLE = frozenset({"Environment"})
"""Categories of which an object has one tag at most."""
TIERS = ("Gold", "Silver", "Bronze", "None")
FOLDERS = ("web", "web/front", "db", "apps/shop")
OWNERS = ("Ada", "Grace", "Edsger")


def categories(vms: Iterable[VmSpec]) -> list[dict[str, Any]]:
    """The categories and tags that the VMs bear, for inventory.json."""
    found: dict[str, set[str]] = {}
    for vm in vms:
        for tag in vm.tags:
            category, _, name = tag.partition("/")
            found.setdefault(category, set()).add(name)
    return [
        {
            "name": category,
            "description": "",
            "cardinality": "SINGLE" if category in SINGLE else "MULTIPLE",
            "tags": sorted(names),
        }
        for category, names in sorted(found.items())
    ]


def twin(site: str, spec: SiteSpec, host: str) -> dict[str, Any]:
    """A second datacenter for inventory.json: the first datastore's name again, with another type and size."""

    def datastore(name: str) -> dict[str, Any]:
        return {"name": name, "type": "NFS", "naa": None, "local": False, "capacity": GIB, "hosts": [host]}

    return {
        "datacenter": f"{site}-dc-2",
        "host": host,
        "datastores": [datastore(f"{site}-{store.name}") for store in spec.datastores[:1]],
        "home": datastore(f"{site}-dc-2-home"),
        "vms": list(spec.twin_vms),
    }


def places(number: int) -> dict[str, Any]:
    """Fields of the VmSpec of the `number`-th VM of an estate: where it is, its tags and custom attributes.

    Every fourth VM has `Backup/Gold`, every fourth none of that category; every tenth is in a vApp; every third belongs
    to the same owner.
    """
    tier = TIERS[number % len(TIERS)]
    tags = [f"Environment/{'Test' if number % 5 == 0 else 'Production'}"]
    if tier != "None":
        tags.append(f"Backup/{tier}")
    return {
        "folder": FOLDERS[number % len(FOLDERS)],
        "pool": "gold" if tier == "Gold" else "rest/small",
        "vapp": "shop" if number % 10 == 0 else None,
        "tags": tuple(tags),
        "attributes": {"Owner": OWNERS[number % len(OWNERS)]},
    }
