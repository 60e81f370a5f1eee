"""Reads a replica's disk, or parts of it, and compares it with its digests, over whichever mode works."""

from __future__ import annotations

from collections.abc import Callable

from vrepl.engine.context import VerificationContext
from vrepl.engine.gate import End
from vrepl.errors import TransportModeError
from vrepl.extents import Extent
from vrepl.model import Disk, Side, TransportMode, VirtualMachine
from vrepl.ports import DigestFiles, DiskAddress, TransferProgress, VerifyOrder, VerifyResult


def compare_disk(
    context: VerificationContext,
    who: str,
    replica: VirtualMachine,
    snapshot_ref: str | None,
    disk: Disk,
    digests: DigestFiles,
    *,
    regions: tuple[Extent, ...] | None = None,
    progressed: Callable[[TransferProgress], None] = lambda progress: None,
) -> VerifyResult:
    """`who`: the VM that events speak of. `snapshot_ref`: None: the leaf, as it is now. Raises DiskError."""
    services = context.services
    used_hotadd = False

    def once() -> VerifyResult:
        nonlocal used_hotadd
        end = _end(context, replica, snapshot_ref, disk)
        used_hotadd = used_hotadd or end.choice.mode is TransportMode.HOTADD
        with context.gate.hold_disk(object(), [end], disk.capacity):
            return services.movers.verify(VerifyOrder(end.address, digests, regions), progressed)

    try:
        while True:
            try:
                return services.patiently(who, f"verify {disk.title}", once)
            except TransportModeError as error:
                services.modes.failed(context.target.name, disk.store, TransportMode(error.mode), error.message)
                services.events.note(who, f"{disk.title}: {error.message}; the next mode is taken")
    finally:
        if used_hotadd:
            services.movers.cleanup(context.target.name, replica.ref)


def _end(context: VerificationContext, replica: VirtualMachine, snapshot_ref: str | None, disk: Disk) -> End:
    """Raises DiskError once no mode is left."""
    # The rules of a source: the replica's disk is only read here.
    plan = context.services.modes.plan(
        Side.SOURCE, context.target.name, replica, disk, first_run=False, allowed=context.modes
    )
    address = DiskAddress(
        site=context.target.name,
        vm_ref=replica.ref,
        snapshot_ref=snapshot_ref,
        path=disk.path,
        capacity=disk.capacity,
        modes=plan.modes,
        vm_name=replica.name,
        disk_title=disk.title,
        proxy=plan.proxy,
    )
    return End(address, replica, False, plan.usable[0], plan.engine)
