"""API calls as the trace shows them: method, object, arguments and what came of it, each attempt on a line of its own.

Answers are told by their type alone: an answer may be a ticket, or a whole inventory.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable
from typing import Any

from pyVmomi import VmomiSupport

from vrepl.trace import HIDDEN, Trace
from vrepl.vsphere.api import kind_of, ref_of

UNTOLD = re.compile(r"Login|CloneSession|Guest|Ticket", re.I)
"""Methods whose arguments are left out: they are made of secrets, or run an operator's scripts."""
OWN_OPTION = "vrepl."
"""Values of other options (extraConfig) are left out: guests are given passwords in them."""

_support: Any = VmomiSupport


def traced(trace: Trace, server: str, target: Any, info: Any, arguments: Any, send: Callable[[], Any]) -> Any:
    """Make the call; whatever it ends in is written down."""
    method = str(info.wsdlName)
    told: Any = HIDDEN
    if not UNTOLD.search(method):
        told = {each.name: plain(value) for each, value in zip(info.params, arguments, strict=False)}
    fields = {"server": server, "method": method, "target": plain(target), "arguments": told}
    began = time.monotonic()
    try:
        answer = send()
    except BaseException as error:
        fields["error"] = f"{kind_of(error)}: {getattr(error, 'msg', None) or error}"
        raise
    else:
        fields["answer"] = described(answer)
        return answer
    finally:
        trace.event("api", fields | {"seconds": round(time.monotonic() - began, 6)})


def traced_exchange(trace: Trace, server: str, method: str, target: str, sent: int, status: int, received: int) -> None:
    """An HTTPS request beside SOAP; what follows `?` in its target is left out."""
    fields = {"server": server, "method": method, "target": target.partition("?")[0]}
    trace.event("https", fields | {"bytes_sent": sent, "status": status, "bytes_received": received})


def _is_set(value: Any) -> bool:
    """A reference compares itself with nothing but references, so it is not asked."""
    return not (value is None or (isinstance(value, list | str) and not value))


def described(answer: Any) -> Any:
    """The type of an answer; a reference as it is."""
    if isinstance(answer, list):
        return f"{len(answer)} × {kind_of(answer[0])}" if answer else "nothing"
    if isinstance(answer, _support.ManagedObject):
        return plain(answer)
    return "nothing" if answer is None else kind_of(answer)


def plain(value: Any) -> Any:
    """Arguments as JSON: references as `Type:moref`, data objects by what is set of them."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, _support.ManagedObject):
        return f"{kind_of(value)}:{ref_of(value)}"
    if isinstance(value, _support.DataObject):
        fields = {each.name: getattr(value, each.name) for each in value._GetPropertyList()}
        if kind_of(value) == "OptionValue" and not str(fields.get("key")).startswith(OWN_OPTION):
            fields["value"] = HIDDEN
        told = {name: plain(item) for name, item in fields.items() if _is_set(item)}
        return {"type": kind_of(value)} | told
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return str(value)
