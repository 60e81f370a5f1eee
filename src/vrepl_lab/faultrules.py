"""The small language in which `vrepl lab set` describes faults.

One rule for VixDiskLib's calls (DISK_GRAMMAR), one for the API's (API_GRAMMAR). N is the matching call that fires first
(1: the next one), COUNT how many calls fire (default 1, `*`: all from then on).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from vrepl_lab.errors import LabError

DISK_GRAMMAR = "fault=OP:ACTION[:ARGUMENT][@N[xCOUNT]][,vm=NAME][,mode=MODE]"
API_GRAMMAR = "api_fault=METHOD:ACTION[:ARGUMENT][@N[xCOUNT]][,vm=NAME][,p=0.2][,seed=N][,ms=N][,message=TEXT]"

OPERATIONS = {
    "open": 1,
    "read": 2,
    "write": 3,
    "flush": 4,
    "close": 5,
    "query_allocated": 6,
    "connect": 7,
    "prepare": 8,
}
ACTIONS = {"error": 1, "freeze": 2, "crash": 3, "lost": 4}
MODES = ("san", "hotadd", "nbdssl", "nbd")
API_ACTIONS = ("fault", "task_fault", "task_hang", "http_503", "drop", "drop_reply", "expire_session", "delay")
ERROR_NAMES = {
    "fail": 1,
    "no_memory": 2,
    "not_supported": 6,
    "no_access": 13,
    "locked": 15,
    "read_only": 16,
    "permission": 3014,
    "refused": 14009,
    "connection_lost": 14011,
    "licence": 16064,
    "cannot_connect": 18000,
}
"""Words for VixError codes, so that a rule can be read."""

WHEN = re.compile(r"@(?P<first>\d+)(?:x(?P<count>\d+|\*))?$")
RULE = struct.Struct("<IIQQQQQ48s8s2Q")
"""One rule of settings.bin (docs/lab-internals.md, section 5): 120 bytes."""

EXAMPLES = (
    "fault=read:error:connection_lost@100",
    "fault=write:crash@50,vm=web-01",
    "fault=open:error:13@1x*,mode=hotadd",
    "api_fault=CreateSnapshot_Task:task_fault:FileFault@2,vm=db-01",
    "api_fault=*:http_503@1x*,p=0.2",
)


@dataclass(frozen=True, slots=True)
class DiskFault:
    """A fault in libvixDiskLib; `code` is a VixError, `milliseconds` a freeze's length, `count` 0 means for ever."""

    operation: str
    action: str
    code: int = 0
    first: int = 1
    count: int = 1
    milliseconds: int = 0
    vm: str = ""
    mode: str = ""

    def pack(self) -> bytes:
        """As settings.bin holds it, with no call seen yet."""
        return RULE.pack(
            OPERATIONS[self.operation],
            ACTIONS[self.action],
            self.code,
            self.first,
            self.count,
            self.milliseconds,
            0,
            self.vm.encode(),
            self.mode.encode(),
            0,
            0,
        )


@dataclass(frozen=True, slots=True)
class ApiFault:
    """A fault in the simulated API; `fault` names a vSphere fault type, `count` 0 means for ever."""

    method: str
    action: str
    fault: str = ""
    first: int = 1
    count: int = 1
    vm: str = ""
    probability: float = 1.0
    delay_ms: int = 0
    message: str = ""
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "vm": self.vm,
            "skip": self.first - 1,
            "count": self.count,
            "probability": self.probability,
            "action": self.action,
            "fault": self.fault,
            "message": self.message,
            "delay_ms": self.delay_ms,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Parts:
    """A rule, cut into its pieces."""

    subject: str
    action: str
    argument: str
    first: int
    count: int
    options: dict[str, str]


def cut(text: str, options: tuple[str, ...]) -> Parts:
    head, *rest = text.split(",")
    given = {}
    for item in rest:
        key, separator, value = item.partition("=")
        if not separator or key not in options:
            raise LabError(f"fault {text!r}: {item!r} is none of {', '.join(f'{name}=…' for name in options)}")
        given[key] = value
    first, count = 1, 1
    when = WHEN.search(head)
    if when:
        head = head[: when.start()]
        first = int(when["first"])
        count = 0 if when["count"] == "*" else int(when["count"] or 1)
        if first < 1 or (count < 1 and when["count"] != "*"):
            raise LabError(f"fault {text!r}: calls are counted from 1 (write x* for all)")
    elif "@" in head:
        raise LabError(f"fault {text!r}: what follows @ must be N or NxCOUNT, such as @3 or @3x2 or @1x*")
    words = head.split(":", 2)
    if len(words) < 2 or not words[0]:
        raise LabError(f"fault {text!r}: expected OP:ACTION, such as {EXAMPLES[0].partition('=')[2]}")
    return Parts(words[0], words[1], words[2] if len(words) == 3 else "", first, count, given)


def parse_disk_fault(text: str) -> DiskFault:
    """`read:error:14011@100,vm=web-01` -> DiskFault. Raises LabError saying what is wrong with it."""
    parts = cut(text, ("vm", "mode"))
    known(text, "operation", parts.subject, tuple(OPERATIONS))
    known(text, "action", parts.action, tuple(ACTIONS))
    mode, vm = parts.options.get("mode", ""), parts.options.get("vm", "")
    if mode:
        known(text, "mode", mode, MODES)
    if len(vm.encode()) > 47:
        raise LabError(f"fault {text!r}: the VM's name is longer than 47 bytes")
    code = milliseconds = 0
    if parts.action == "error":
        code = ERROR_NAMES.get(parts.argument) or number(text, "error code", parts.argument or "1")
    elif parts.action == "freeze":
        milliseconds = number(text, "milliseconds", parts.argument or "1000")
    elif parts.argument:
        raise LabError(f"fault {text!r}: {parts.action} takes no argument")
    return DiskFault(parts.subject, parts.action, code, parts.first, parts.count, milliseconds, vm, mode)


def parse_api_fault(text: str) -> ApiFault:
    """`CreateSnapshot_Task:task_fault:FileFault@2` -> ApiFault. Raises LabError saying what is wrong with it."""
    parts = cut(text, ("vm", "p", "seed", "ms", "message"))
    known(text, "action", parts.action, API_ACTIONS)
    fault, delay = "", number(text, "ms", parts.options.get("ms", "0"))
    if parts.action in ("fault", "task_fault"):
        if not parts.argument:
            raise LabError(f"fault {text!r}: name vSphere's fault, such as {parts.action}:FileFault")
        fault = parts.argument
    elif parts.action == "delay":
        delay = number(text, "milliseconds", parts.argument or str(delay))
    elif parts.argument:
        raise LabError(f"fault {text!r}: {parts.action} takes no argument")
    try:
        probability = float(parts.options.get("p", "1"))
    except ValueError:
        probability = -1.0
    if not 0 < probability <= 1:
        raise LabError(f"fault {text!r}: p must be a probability above 0 and at most 1")
    return ApiFault(
        method=parts.subject,
        action=parts.action,
        fault=fault,
        first=parts.first,
        count=parts.count,
        vm=parts.options.get("vm", ""),
        probability=probability,
        delay_ms=delay,
        message=parts.options.get("message", ""),
        seed=number(text, "seed", parts.options.get("seed", "0")),
    )


def known(text: str, what: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise LabError(f"fault {text!r}: {what} {value!r} is none of {', '.join(names)}")


def number(text: str, what: str, value: str) -> int:
    if not value.isdecimal():
        raise LabError(f"fault {text!r}: {what} {value!r} is not a whole number")
    return int(value)
