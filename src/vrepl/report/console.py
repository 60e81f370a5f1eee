"""The reports as text for a console of 80 columns: tables for figures, lines for words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vrepl.printable import printable
from vrepl.report import format as words
from vrepl.report.disk import DiskReport
from vrepl.report.model import ErrorReport, Result, RunReport, VmReport
from vrepl.report.verification import DiskVerification, VerifyReport

STYLES = {
    Result.SUCCESS: "green",
    Result.PARTIAL: "yellow",
    Result.FAILED: "red",
    Result.SKIPPED: "yellow",
    Result.INTERRUPTED: "yellow",
    Result.PLANNED: "",
}


WHOLE = frozenset({"Restore point", "Run", "Result", "State", "Verified", "Replicable"})
"""Columns whose words are never folded: IDs that somebody may want to copy, and what everybody looks for."""
FOLDED = 12
"""Characters that a column of names keeps at least before another column gives way."""


def make_console(file: IO[str] | None = None, *, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints text as it is: no markup, no emoji codes, no colours of its own for numbers."""
    return Console(file=file, stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


class Listing:
    """A table in vrepl's look. Where a terminal is too narrow, the columns named in `gives_way` go, the first first.

    Names and words are folded; numbers (`right`), IDs, and results are not. `dense`: less space between columns. A cell
    is text, never markup, and printable; one that is a `Text` brings a style.
    """

    def __init__(
        self,
        *columns: str,
        right: Sequence[str] = (),
        gives_way: Sequence[str] = (),
        dense: bool = False,
    ) -> None:
        self._columns = columns
        self._right = frozenset(right)
        self._gives_way = tuple(gives_way)
        self._dense = dense
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        self._rows.append(tuple(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept = self._fitting(options.max_width)
        widths = [self._widest(number) for number in kept]
        if sum(widths) + self._gap * (len(kept) - 1) <= options.max_width:
            yield from self._lines(console, kept, widths, "-" if options.ascii_only else "─")
            return
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False, collapse_padding=self._dense)
        for number in kept:
            name = self._columns[number]
            justify = "right" if name in self._right else "left"
            made.add_column(name, justify=justify, no_wrap=self._is_whole(name), overflow="fold")  # type: ignore[arg-type]
        for row in self._rows:
            made.add_row(*(row[number] for number in kept))
        yield made

    @property
    def _gap(self) -> int:
        return 2 if self._dense else 3

    def _lines(self, console: Console, kept: Sequence[int], widths: Sequence[int], rule: str) -> Iterator[Segment]:
        """The table where nothing is to be folded. A `Table` measures and wraps each cell, which takes long."""
        styles: dict[str | Style, Style] = {}
        gap = Segment(" " * self._gap)

        def row(cells: Sequence[Text]) -> Iterator[Segment]:
            for place, (number, width) in enumerate(zip(kept, widths, strict=True)):
                cell = cells[number]
                space = " " * (width - cell_len(cell.plain))
                right = self._columns[number] in self._right
                style = styles.get(cell.style) or styles.setdefault(cell.style, console.get_style(cell.style))
                if place:
                    yield gap
                yield Segment(space + cell.plain if right else cell.plain + space, style)
            yield Segment.line()

        yield from row([Text(name, style="table.header") for name in self._columns])
        yield Segment(rule * (sum(widths) + self._gap * (len(kept) - 1)))
        yield Segment.line()
        for cells in self._rows:
            yield from row(cells)

    def _is_whole(self, column: str) -> bool:
        return column in self._right or column in WHOLE

    def _fitting(self, width: int) -> list[int]:
        """Numbers of the columns that stay."""
        kept = list(range(len(self._columns)))
        for name in self._gives_way:
            if sum(self._least(number) for number in kept) + 3 * (len(kept) - 1) <= width:
                break
            kept.remove(self._columns.index(name))
        return kept

    def _least(self, number: int) -> int:
        """Characters that a column takes at least."""
        name = self._columns[number]
        widest = self._widest(number)
        return widest if self._is_whole(name) else max(cell_len(name), min(widest, FOLDED))

    def _widest(self, number: int) -> int:
        """Characters that a column takes if nothing of it is folded."""
        return max(cell_len(self._columns[number]), *(cell_len(row[number].plain) for row in self._rows), 0)


def table(*columns: str, right: tuple[str, ...] = (), gives_way: tuple[str, ...] = (), dense: bool = False) -> Listing:
    """An empty table."""
    return Listing(*columns, right=right, gives_way=gives_way, dense=dense)


def line(out: Console, text: str, style: str = "", *, mark: str = "") -> None:
    """One line of words, nothing in it taken for markup; whole where programs may read it.

    A terminal that is too narrow for it wraps it, at the depth at which it began. `mark` stands before it.
    """
    text = printable(text)
    if not out.is_terminal:
        out.print(Text(mark + text, style=style), soft_wrap=True)
        return
    words = text.lstrip(" ")
    depth = len(text) - len(words)
    if not mark:
        out.print(Padding(Text(words, style=style), (0, 0, 0, depth), expand=False))
        return
    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark + " " * depth, style=style), Text(words, style=style))
    out.print(grid)


def plain(out: Console, text: str) -> None:
    """One line for programs: never wrapped."""
    out.print(Text(printable(text)), soft_wrap=True)


def paragraph(out: Console, text: str) -> None:
    """Lines for programs that are vrepl's own to break: a document."""
    for one in text.rstrip("\n").split("\n"):
        plain(out, one)


def show_run(out: Console, report: RunReport, *, with_errors: bool = True) -> None:
    """What a run did; `with_errors` False leaves failures to `show_errors`."""
    took = "" if report.seconds is None else f" in {words.duration(report.seconds)}"
    head = f"job {printable(report.job)}, run {report.id}: "
    out.print(Text.assemble(head, (report.result.value, STYLES[report.result]), took))
    disks = [(vm, disk) for vm in report.vms for disk in vm.disks]
    if disks:
        figures = table(
            "VM", "Disk", "How", "Transport", "Read", "Moved", "Rate",
            right=("Disk", "Read", "Moved", "Rate"),
            gives_way=("Rate", "Transport", "Read", "How"),
        )  # fmt: skip
        for vm, disk in disks:
            seconds = round(disk.seconds or 0.0, 3)  # as the repository keeps it: `report` then says the same
            rate = words.rate(disk.bytes_read, seconds) if disk.bytes_read and seconds else "–"
            figures.add_row(
                vm.name,
                str(disk.index),
                disk.kind.value + (" (resumed)" if disk.resumed else ""),
                transport(disk),
                words.size(disk.bytes_read),
                words.size(disk.bytes_moved),
                rate,
            )
        out.print(figures)
    outcome = table(
        "VM", "Result", "Restore point", "Consistency", "Took",
        right=("Took",),
        gives_way=("Consistency", "Took", "Restore point"),
    )  # fmt: skip
    for vm in report.vms:
        outcome.add_row(
            vm.name,
            Text(vm.result.value, style=STYLES[vm.result]),
            vm.restore_point or "–",
            vm.consistency.value if vm.consistency else "–",
            words.duration(vm.seconds),
        )
    out.print(outcome)
    show_notes(out, report)
    for vm in report.vms:
        show_remarks(out, vm)
    show_bottleneck(out, report)
    if with_errors:
        show_errors(out, report)


def show_errors(out: Console, report: RunReport) -> None:
    """What happened to failed VMs, and what to do: a cause that several have is said once, with all of them."""
    for error, names in report.causes():
        show_error(out, names[0] if len(names) == 1 else f"{len(names)} VMs", error)
        if len(names) > 1:
            line(out, f"  {', '.join(names)}")


NAMED_IN_A_LINE = 3
"""VMs of which one thing is said, that are named before it; more of them are counted, and named below it."""


def show_notes(out: Console, report: RunReport) -> None:
    """What an operator should know although it is no failure; what is true of several VMs is said once."""
    alike: dict[str, list[str]] = {}
    for vm in report.vms:
        for note in vm.notes:
            alike.setdefault(note, []).append(vm.name)
    for note, names in alike.items():
        named = ", ".join(names)
        if len(names) <= NAMED_IN_A_LINE:
            line(out, f"{named}: {note}")
        else:
            line(out, f"{len(names)} VMs: {note}")
            line(out, f"  {named}")


def transport(disk: DiskReport) -> str:
    """Both sides' modes, or one if they are the same."""
    source, target = disk.source.mode or "–", disk.target.mode or "–"
    return source if source == target else f"{source} → {target}"


def show_remarks(out: Console, vm: VmReport) -> None:
    """What to know of a VM's run beside its figures."""
    for disk in vm.disks:
        for retry in disk.retries:
            line(out, f"{vm.name} disk {disk.index}: tried again: {retry}", "yellow")
        for side, used in (("source", disk.source), ("target", disk.target)):
            for fallback in used.fallbacks:
                line(out, f"{vm.name} disk {disk.index} {side}: {fallback}", "yellow")
    if vm.consolidation_needed:
        line(out, f"{vm.name}: the source needs disk consolidation; the next run tries again", "yellow")
    if vm.removed_restore_points:
        line(out, f"{vm.name}: restore points removed by retention: {', '.join(vm.removed_restore_points)}")


def show_error(out: Console, name: str, error: ErrorReport) -> None:
    place = ", ".join(part for part in (name, error.disk, error.step) if part)
    line(out, f"error: {place}: {error.message}", "red")
    if error.hint:
        line(out, f"hint: {error.hint}")


BOTTLENECK_HINTS = {
    "source": "reading is what takes the time: another transport mode, more disks at once, or a faster datastore",
    "target": "writing is what takes the time: another transport mode, more disks at once, or a faster datastore",
    "network": "the line between the movers is what takes the time",
    "mover": "this machine's processors are what takes the time: fewer disks at once, or another proxy",
}


def show_bottleneck(out: Console, report: RunReport) -> None:
    """Where the transfers waited, and what helps if they waited mostly in one place."""
    shares = {stage: share for stage, share in report.bottleneck().items() if share >= 0.005}
    if not shares:
        return
    line(out, "bottleneck: " + ", ".join(f"{stage} {share * 100:.0f} %" for stage, share in shares.items()))
    first = next(iter(shares))
    if shares[first] > 0.5 and first in BOTTLENECK_HINTS:
        line(out, f"hint: {BOTTLENECK_HINTS[first]}")


def show_verification(out: Console, report: VerifyReport) -> None:
    figures = table(
        "VM", "Restore point", "Disk", "Read", "Differs", "Verified",
        right=("Disk", "Read", "Differs"),
        gives_way=("Read", "Restore point", "Disk"),
    )  # fmt: skip
    for vm in report.vms:
        verdict = Text("yes" if vm.result is Result.SUCCESS else vm.result.value, style=STYLES[vm.result])
        if not vm.disks:
            figures.add_row(vm.name, vm.restore_point or "–", "–", "–", "–", verdict)
        for disk in vm.disks:
            bad = sum(length for _, length in disk.bad_extents)
            figures.add_row(
                vm.name,
                vm.restore_point or "–",
                str(disk.index),
                words.size(disk.bytes_read),
                words.size(bad),
                verdict,
            )
    out.print(figures)
    for vm in report.vms:
        for disk in vm.disks:
            if said := _not_judged(disk):
                line(out, f"{vm.name}, {disk.label}: {said}")
        if vm.error is not None:
            show_error(out, vm.name, vm.error)


def _not_judged(disk: DiskVerification) -> str:
    """What a verification against the source can say neither good nor bad of; empty where that is nothing."""
    parts = (
        (disk.bytes_changed, "changed at the source since (the next run brings it)"),
        (disk.bytes_not_judged, "without a sure digest"),
        (disk.bytes_zeroed, "zeros now, and not then (a guest may have given it back)"),
    )
    said = [f"{words.size(size)} {why}" for size, why in parts if size]
    return f"not judged: {'; '.join(said)}" if said else ""
