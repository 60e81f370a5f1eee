"""The crossing: disks move from one VM into another, whichever of the two is the replica."""

from __future__ import annotations

from collections.abc import Sequence

from vrepl.engine.disk_crossing import CrossingRoute, DiskCrossing
from vrepl.engine.disk_move import DiskMove
from vrepl.engine.events import Note
from vrepl.engine.san_writing import move_side_by_side, write_over_san
from vrepl.engine.undo import Undo
from vrepl.model import Side
from vrepl.report.disk import DiskReport


class Crossing:
    """The disks of one VM, in parallel, into another VM's. Both VMs' snapshots and access are the caller's windows."""

    def __init__(self, route: CrossingRoute, moves: Sequence[DiskMove], vm: str, note: Note) -> None:
        """`vm`: whom events speak of. The first intent of each disk is on disk already."""
        self._route = route
        self._vm = vm
        self._note = note
        self._disks = [DiskCrossing(route, move, vm) for move in moves]

    def run(self) -> None:
        """Raises the error that matters most. In the end no disk is open, and nothing of these VMs hangs on a proxy."""
        with Undo(self._note) as undo:
            undo.push("detach HotAdd disks", self._detach_hotadd)
            for disk in self._disks:
                if disk.finished:
                    disk.choose_modes()
            write_over_san(self._route, self._disks, self._note)
            move_side_by_side([disk.run for disk in self._disks if not disk.finished])
            undo.release_all()

    def bytes_moved(self, key: int) -> int:
        """Of the disk that logs and intent know by `key`."""
        return sum(disk.tally.moved for disk in self._disks if disk.move.key == key)

    def reports(self) -> list[DiskReport]:
        """How each disk went so far."""
        return [disk.report() for disk in self._disks]

    def _detach_hotadd(self) -> None:
        """VDDK wants Cleanup after HotAdd before any snapshot operation (VDDK Programming Guide, Cleanup)."""
        services, keeper = self._route.services, self._route.keeper
        sites: dict[Side, str] = {end.side: end.site.name for end in (self._route.read, self._route.written)}
        for entry in keeper.intent.journal.hotadd_cleanup:
            services.patiently(
                self._vm,
                "detach HotAdd disks",
                lambda entry=entry: services.movers.cleanup(sites[entry.side], entry.vm_ref, entry.proxy),  # type: ignore[misc]
                even_when_stopped=True,
            )
            keeper.forget_hotadd(entry)
