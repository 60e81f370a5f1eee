"""`vrepl lab set`: what a running lab obeys at once.

Part of it lies in `DIR/SITE/settings.bin`, which every libvixDiskLib of the lab maps (docs/lab-internals.md,
section 5); the rest is posted to the site's simulator (section 6).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vrepl_lab import nasty
from vrepl_lab.errors import LabError
from vrepl_lab.faultrules import RULE, ApiFault, DiskFault, parse_api_fault, parse_disk_fault
from vrepl_lab.guestrules import parse_guest
from vrepl_lab.spec import MIB

MAGIC = b"VRLABSET"
FILE_SIZE = 4096
GENERATION_AT = 12
RULES_AT = 128
RULES = 32
FIELDS = {"latency_us": 16, "bandwidth_bytes_s": 24, "write_buffer_bytes": 32, "allocated_supported": 48}
DEFAULTS = {"latency_us": 0, "bandwidth_bytes_s": 0, "write_buffer_bytes": 4 * MIB, "allocated_supported": 1}
FAULT_KEYS = ("fault", "api_fault", "faults", "guest", "guests", "nasty")


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of `vrepl lab set`. `parse` turns its text into what `target` wants."""

    help: str
    target: str
    """Name of a field of settings.bin, or of a key of POST /settings."""
    parse: Callable[[str], Any]
    in_library: bool = False


@dataclass(slots=True)
class Change:
    """Everything one `vrepl lab set` asks of one site."""

    library: dict[str, int] = field(default_factory=dict)
    simulator: dict[str, Any] = field(default_factory=dict)
    guests: list[dict[str, Any]] = field(default_factory=list)
    clear_guests: bool = False
    clear_faults: bool = False
    disk_faults: list[DiskFault] = field(default_factory=list)
    api_faults: list[ApiFault] = field(default_factory=list)


def whole(text: str) -> int:
    if not text.lstrip("-").isdecimal():
        raise ValueError("expected a whole number")
    return int(text)


def count(text: str) -> int:
    value = whole(text)
    if value < 0:
        raise ValueError("expected a number from 0 on")
    return value


def mib_as_bytes(text: str) -> int:
    value = float(text)
    if value < 0:
        raise ValueError("expected MiB from 0 on")
    return int(value * MIB)


def seconds(text: str) -> float:
    value = float(text)
    if value < 0:
        raise ValueError("expected seconds from 0 on")
    return value


def yes_or_no(text: str) -> int:
    if text.lower() in ("1", "yes", "true", "on"):
        return 1
    if text.lower() in ("0", "no", "false", "off"):
        return 0
    raise ValueError("expected yes or no")


def allocated(text: str) -> int:
    """`any-thread` is for clients that ask from another thread than VDDK's guide wants, such as nbdkit's plugin."""
    if text.lower() == "any-thread":
        return 2
    try:
        return yes_or_no(text)
    except ValueError:
        raise ValueError("expected yes, no or any-thread") from None


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("expected a share from 0 to 1")
    return value


def switch(text: str) -> bool:
    return yes_or_no(text) == 1


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected {' or '.join(words)}")
        return text

    return parse


def block_kib(text: str) -> int:
    value = count(text) * 1024
    if value < 64 * 1024 or value & (value - 1):
        raise ValueError("expected a power of two from 64 on")
    return value


def names(text: str) -> list[str]:
    return [] if text in ("", "none") else text.split(",")


def by_name(unit: int, *, all_at_once: bool) -> Callable[[str], dict[str, int]]:
    """NAME:N,NAME:N, or (if there is such a thing) N alone for all, under the key `*`."""

    def parse(text: str) -> dict[str, int]:
        values: dict[str, int] = {}
        for item in names(text):
            name, _, value = item.rpartition(":")
            if not name and not all_at_once:
                raise ValueError("expected NAME:N")
            values[name or "*"] = count(value) * unit
        return values

    return parse


SETTINGS: dict[str, Setting] = {
    "latency_us": Setting("microseconds that each VixDiskLib read or write takes longer", "latency_us", count, True),
    "bandwidth_mib_s": Setting("MiB/s per open disk; 0: no limit", "bandwidth_bytes_s", mib_as_bytes, True),
    "write_buffer_mib": Setting(
        "MiB written that stay in a handle until Flush or Close, and die with it",
        "write_buffer_bytes",
        mib_as_bytes,
        True,
    ),
    "allocated_supported": Setting(
        "yes | no | any-thread: QueryAllocatedBlocks works (any-thread: not only on the thread that opened)",
        "allocated_supported",
        allocated,
        True,
    ),
    "lock_linger_s": Setting("seconds that a killed client's lock stays", "lock_linger_s", seconds),
    "cbt_block_kib": Setting(
        "KiB per change-tracking block, for disks enabled from now on", "cbt_block_size", block_kib
    ),
    "cbt_page": Setting("areas per reply of QueryChangedDiskAreas", "cbt_page", count),
    "vcenter_connections": Setting("VixDiskLib connections that the vCenter allows", "vcenter_connections", count),
    "nfc_limit_mib": Setting(
        "NFC memory per ESXi host: N, or HOST:N,HOST:N", "nfc_limit_mib", by_name(1, all_at_once=True)
    ),
    "nfc_closed": Setting("HOST,HOST | all | none: hosts whose NFC port refuses", "nfc_closed", names),
    "nfc_trouble": Setting(
        "none | first-certificate | second-certificate | told-certificate | cut | lie: hosts' NFC without VDDK",
        "nfc_trouble",
        one_of("none", "first-certificate", "second-certificate", "told-certificate", "cut", "lie"),
    ),
    "hotadd_delay_ms": Setting(
        "milliseconds from a disk's HotAdd until the proxy's guest sees the device", "hotadd_delay_ms", count
    ),
    "hotadd_rescan": Setting(
        "yes | no: the guest sees a device only once it has scanned its SCSI host", "hotadd_rescan", switch
    ),
    "quiesce": Setting("ok | fail: what a quiesced snapshot ends with", "quiesce", one_of("ok", "fail")),
    "snapshot_ms": Setting("milliseconds that each snapshot task takes longer", "snapshot_ms", count),
    "task_ms": Setting("milliseconds that each task takes longer", "task_ms", count),
    "boot_ms": Setting("milliseconds from power-on until VMware Tools run", "boot_ms", count),
    "cbt_empty_page": Setting(
        "yes | no: QueryChangedDiskAreas answers with an empty page now and then", "cbt_empty_page", switch
    ),
    "cbt_false": Setting("share of the unchanged blocks that change tracking calls changed", "cbt_false", share),
    "cbt_miss": Setting("share of the changed blocks that change tracking keeps silent about", "cbt_miss", share),
    "cbt_whole_disk": Setting(
        "yes | no: change tracking answers with one area, the whole disk", "cbt_whole_disk", switch
    ),
    "cbt_per_disk": Setting(
        "yes | no: disks added after change tracking was enabled are not tracked until it is enabled again",
        "cbt_per_disk",
        switch,
    ),
    "cbt_stun_ms": Setting(
        "milliseconds that the first snapshot takes after tracking was enabled on a running VM; a quiesced one fails",
        "cbt_stun_ms",
        count,
    ),
    "wrapped_faults": Setting(
        "yes | no: locks and failed quiescing come as GenericVmConfigFault, with the cause in message keys",
        "wrapped_faults",
        switch,
    ),
    "quiesce_without_tools": Setting(
        "ignored | refused: what becomes of the quiesce flag without VMware Tools",
        "quiesce_without_tools",
        one_of("ignored", "refused"),
    ),
    "description_limit": Setting("bytes that are kept of a snapshot's description; 0: all", "description_limit", count),
    "hardware_max": Setting(
        "newest hardware version that hosts know: N, HOST:N,HOST:N or none",
        "hardware_max",
        by_name(1, all_at_once=True),
    ),
    "unknown_guest_ids": Setting("ID,ID | none: guest systems that no host knows", "unknown_guest_ids", names),
    "isolated_reachable": Setting(
        "yes | no: guests on a switch without uplink answer their ports all the same", "isolated_reachable", switch
    ),
    "power_on_ms": Setting("milliseconds that each power-on takes longer", "power_on_ms", count),
    "power_on_limit": Setting("power-ons at once on one host, others wait; 0: any number", "power_on_limit", count),
    "host_memory_mib": Setting(
        "memory for running VMs: N, HOST:N,HOST:N or none (then any)",
        "host_memory_mib",
        by_name(1, all_at_once=True),
    ),
    "clone_guard": Setting(
        "yes | no: a linked clone keeps what it stands on from being merged (vSphere guards nothing)",
        "clone_guard",
        switch,
    ),
    "customize_needs_tools": Setting(
        "yes | no: only guests whose Tools have run once can be customised", "customize_needs_tools", switch
    ),
    "clock_offset_s": Setting(
        "seconds that the vCenter's clock is ahead (or behind: negative)", "clock_offset_s", whole
    ),
    "datastore_free_mib": Setting(
        "free space that a datastore reports: NAME:N,NAME:N, or none", "free_bytes", by_name(MIB, all_at_once=False)
    ),
    "missing_privileges": Setting("PRIVILEGE,PRIVILEGE | none: what the user lacks", "missing_privileges", names),
}


def parse_assignments(assignments: Iterable[str], sites: Sequence[str]) -> dict[str, Change]:
    """`KEY=VALUE` and `SITE.KEY=VALUE` -> what each site has to change. Raises LabError at the first that is wrong."""
    changes = {site: Change() for site in sites}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise LabError(f"{assignment!r}: expected KEY=VALUE")
        site, dot, rest = key.partition(".")
        if dot and site not in sites:
            raise LabError(f"{assignment!r}: no site {site} (there are {', '.join(sites)})")
        for name in (site,) if dot else sites:
            apply_assignment(changes[name], rest if dot else key, value, assignment)
    return changes


def apply_assignment(change: Change, key: str, value: str, assignment: str) -> None:
    if key == "fault":
        change.disk_faults.append(parse_disk_fault(value))
        return
    if key == "api_fault":
        change.api_faults.append(parse_api_fault(value))
        return
    if key == "faults":
        if value != "none":
            raise LabError(f"{assignment!r}: only faults=none is known (it clears all)")
        change.clear_faults = True
        change.disk_faults.clear()
        change.api_faults.clear()
        return
    if key == "guest":
        try:
            change.guests.append(parse_guest(value))
        except ValueError as error:
            raise LabError(f"{assignment!r}: {error}") from error
        return
    if key == "guests":
        if value != "none":
            raise LabError(f"{assignment!r}: only guests=none is known (it forgets all)")
        change.clear_guests = True
        change.guests.clear()
        return
    if key == "nasty":
        try:
            chosen = nasty.NASTY if switch(value) else nasty.KIND
        except ValueError as error:
            raise LabError(f"{assignment!r}: {error}") from error
        for name, of_it in chosen.items():
            apply_assignment(change, name, of_it, f"{name}={of_it}")
        return
    setting = SETTINGS.get(key)
    if setting is None:
        raise LabError(f"{assignment!r}: no setting {key}", hint=f"known are {', '.join((*SETTINGS, *FAULT_KEYS))}")
    try:
        parsed = setting.parse(value)
    except ValueError as error:
        raise LabError(f"{assignment!r}: {error}") from error
    into: dict[str, Any] = change.library if setting.in_library else change.simulator
    if isinstance(parsed, dict) and parsed:
        parsed = into.get(setting.target, {}) | parsed
    into[setting.target] = parsed


class SettingsFile:
    """settings.bin of one site: changed in place, because libraries have it mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        content = bytearray(FILE_SIZE)
        struct.pack_into("<8sII", content, 0, MAGIC, 1, 1)
        for name, value in DEFAULTS.items():
            struct.pack_into("<Q", content, FIELDS[name], value)
        self._path.write_bytes(content)

    def read(self) -> dict[str, int]:
        """The fields, and `generation` and the number of `faults` that can still fire."""
        with self._mapped() as memory:
            values = {name: int(struct.unpack_from("<Q", memory, at)[0]) for name, at in FIELDS.items()}
            values["generation"] = int(struct.unpack_from("<I", memory, GENERATION_AT)[0])
            values["faults"] = sum(not free for free in self._free_slots(memory))
            return values

    def write(self, change: Change) -> None:
        """Raises LabError if there are more rules than the 32 that fit."""
        with self._mapped() as memory:
            if change.clear_faults:
                memory[RULES_AT : RULES_AT + RULES * RULE.size] = bytes(RULES * RULE.size)
            free = [slot for slot, is_free in enumerate(self._free_slots(memory)) if is_free]
            if len(change.disk_faults) > len(free):
                raise LabError(f"at most {RULES} VixDiskLib faults at once", hint="clear them with faults=none")
            for slot, rule in zip(free, change.disk_faults, strict=False):
                at = RULES_AT + slot * RULE.size
                packed = rule.pack()
                # The operation goes in last: until then the library takes the slot as unused.
                memory[at : at + 4] = bytes(4)
                memory[at + 4 : at + RULE.size] = packed[4:]
                memory[at : at + 4] = packed[:4]
            for name, value in change.library.items():
                memory[FIELDS[name] : FIELDS[name] + 8] = struct.pack("<Q", value)
            generation = struct.unpack_from("<I", memory, GENERATION_AT)[0]
            memory[GENERATION_AT : GENERATION_AT + 4] = struct.pack("<I", (generation + 1) & 0xFFFFFFFF)

    @staticmethod
    def _free_slots(memory: mmap.mmap) -> Iterator[bool]:
        """Per rule: is it unused, or can it never fire again."""
        for slot in range(RULES):
            operation, _, _, first, times, _, seen, *_ = RULE.unpack_from(memory, RULES_AT + slot * RULE.size)
            yield operation == 0 or (times > 0 and seen >= first + times - 1)

    @contextmanager
    def _mapped(self) -> Iterator[mmap.mmap]:
        try:
            with self._path.open("r+b") as file, mmap.mmap(file.fileno(), FILE_SIZE) as memory:
                if memory[: len(MAGIC)] != MAGIC:
                    raise LabError(f"{self._path} is not a settings file of a lab")
                yield memory
        except (OSError, ValueError) as error:
            raise LabError(
                f"cannot change {self._path}: {error}", hint="is this lab up? see `vrepl lab status`"
            ) from error
