"""Which datastore a name or a disk means. Pure.

A datastore's name is unique within its datacenter only (vSphere Web Services API reference, Datastore), so a
datastore is known by its MoRef, or by datacenter and name: `name` or `datacenter/name`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from vrepl.errors import NotFoundError, UsageError
from vrepl.model import Datastore, Disk


def find_datastore(wanted: str, stores: Sequence[Datastore], *, site: str, host: str | None = None) -> Datastore:
    """The one datastore that a job means by `name` or `datacenter/name`, of those that `host` mounts, if it is given.

    Raises NotFoundError with near names, UsageError where several answer to it.
    """
    found = [store for store in stores if wanted in {store.name, f"{store.datacenter}/{store.name}"}]
    mounted = [store for store in found if host is None or not store.hosts or host in store.hosts]
    if len(mounted) == 1:
        return mounted[0]
    if mounted:
        places = ", ".join(sorted(f"{store.datacenter}/{store.name}" for store in mounted))
        raise UsageError(
            f"site {site} has {len(mounted)} datastores named {wanted}: {places}",
            hint="write the datacenter before the name in target_datastore, as above, or name a target_host",
        )
    where = f"host {host}" if found and host is not None else f"site {site}"
    known = sorted({store.name for store in stores})
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.6)
    raise NotFoundError(
        f"{where} has no datastore {wanted}",
        hint=f"did you mean {' or '.join(near)}?" if near else f"its datastores are: {', '.join(known) or 'none'}",
    )


def datastore_of_disk(
    disk: Disk, stores: Sequence[Datastore], *, datacenter: str = "", host: str = ""
) -> Datastore | None:
    """Where a disk lies; None where that is not known, or not surely.

    `datacenter` and `host`: of the VM that has it, for a disk whose datastore is known by name only (one that is still
    to be made).
    """
    if disk.datastore_ref:
        return next((store for store in stores if store.ref == disk.datastore_ref), None)
    there = [store for store in stores if not datacenter or store.datacenter in {"", datacenter}]
    try:
        return find_datastore(disk.datastore, there, site="", host=host or None)
    except (NotFoundError, UsageError):
        return None
