"""pyVmomi's SOAP stub: how a call goes out, and its answer comes in."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from pyVmomi import SoapAdapter

from vrepl import trace
from vrepl.vsphere import answers
from vrepl.vsphere.tracing import traced

answers.install()

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

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:
        send: Any = super().InvokeMethod
        tracing = trace.current()

        def call() -> Any:
            return send(mo, info, args, outerStub)

        if tracing is None:
            return self._invoke(mo, info, call)
        return self._invoke(mo, info, lambda: traced(tracing, self._place, mo, info, args, call))

    def expect_no_answer_later_than(self, seconds: float) -> None:
        """For connections made from now on; those in the pool are dropped."""
        self.schemeArgs["timeout"] = seconds
        drop: Any = self.DropConnections
        drop()
