"""Mends what a removed snapshot leaves behind when a disk of it was still open: files that nobody needs.

A data mover that died keeps its lock for some seconds; a snapshot removed meanwhile is gone from the tree, its files
stay, and vSphere says `consolidationNeeded`. Consolidating deletes no snapshot and nothing that is in use.
"""

from __future__ import annotations

import logging

from vrepl.engine.context import Services
from vrepl.errors import InterruptedRunError, VreplError
from vrepl.model import VirtualMachine
from vrepl.ports import SnapshottedSite

logger = logging.getLogger(__name__)


def consolidate(services: Services, site: SnapshottedSite, vm: VirtualMachine, *, wait_for_locks: bool) -> bool:
    """Consolidate the disks of a VM that is replicated; False if it still needs it afterwards.

    `wait_for_locks`: try again while a disk is locked, as long as the run's patience lasts.
    """
    try:
        if wait_for_locks:
            services.patiently(vm.name, "consolidate the source's disks", lambda: site.consolidate(vm.ref))
        else:
            site.consolidate(vm.ref)
    except InterruptedRunError:
        raise
    except VreplError as error:
        logger.warning("VM %s: consolidation failed: %s", vm.name, error)
    return not site.read_vm(vm.ref).consolidation_needed
