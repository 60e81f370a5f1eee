"""pyVmomi's SOAP stub: how a call goes out, and its answer comes in."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from pyVmomi import SoapAdapter

from vrepl import trace
from vrepl.vsphere import answers
from vrepl.vsphere.api import vim, vmodl
from vrepl.vsphere.tracing import traced

answers.install()

SPECS_KEPT = 64
_FIRST, _LAST = b"<propSet>", b"</propSet>"

CONNECTIONS_KEPT = 72
"""Idle connections that are not closed: as many as VMs are under way at once, and some. Each new one costs a handshake,
which takes a processor longer than a call."""


class Stub(SoapAdapter.SoapStubAdapter):  # type: ignore[misc,unused-ignore]
    """pyVmomi's SOAP stub, with every call handed to `invoke`."""

    def __init__(
        self,
        invoke: Callable[[Any, Any, Callable[[], Any]], Any],
        *,
        server: str,
        port: int,
        version: str,
        context: ssl.SSLContext,
        timeout: float,
    ) -> None:
        setup: Any = super().__init__
        setup(
            host=server,
            port=port,
            version=version,
            sslContext=context,
            httpConnectionTimeout=timeout,
            poolSize=CONNECTIONS_KEPT,
        )
        self._invoke = invoke
        self._place = f"{server}:{port}"
        self._written: dict[tuple[int, ...], tuple[Any, bytes]] = {}
        """PropertySpecs that were written before, by their identity: they themselves, and how they read."""

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:
        send: Any = super().InvokeMethod
        tracing = trace.current()

        def call() -> Any:
            return send(mo, info, args, outerStub)

        if tracing is None:
            return self._invoke(mo, info, call)
        return self._invoke(mo, info, lambda: traced(tracing, self._place, mo, info, args, call))

    def SerializeRequest(self, mo: Any, info: Any, args: Any) -> Any:
        """As pyVmomi's; of a request for properties, what is always the same is written once.

        pyVmomi looks up types and names anew for each of a VM's forty properties: half of what such a call cost.
        """
        write: Any = super().SerializeRequest
        if info.wsdlName != "RetrievePropertiesEx" or len(args[0]) != 1:
            return write(mo, info, args)
        [asked], *others = args
        key = tuple(map(id, asked.propSet))
        known = self._written.get(key)
        if known is None:
            whole: bytes = write(mo, info, args)
            start, end = whole.find(_FIRST), whole.rfind(_LAST)
            if 0 <= start < end and len(self._written) < SPECS_KEPT:
                self._written[key] = list(asked.propSet), whole[start : end + len(_LAST)]
            return whole
        kind = vmodl.query.PropertyCollector
        short = kind.FilterSpec(
            objectSet=asked.objectSet,
            propSet=[kind.PropertySpec(type=vim.Folder, all=False)],
            reportMissingObjectsInResults=asked.reportMissingObjectsInResults,
        )
        before, _, rest = write(mo, info, [[short], *others]).partition(_FIRST)
        return before + known[1] + rest.partition(_LAST)[2]

    def expect_no_answer_later_than(self, seconds: float) -> None:
        """For connections made from now on; those in the pool are dropped."""
        self.schemeArgs["timeout"] = seconds
        drop: Any = self.DropConnections
        drop()
