"""Plain HTTPS requests to a site's server, beside SOAP: files, REST, and which API versions it speaks."""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError

from pyVmomi import SoapAdapter, VmomiSupport

from vrepl import trace
from vrepl.errors import VreplError, VsphereError
from vrepl.vsphere import tls
from vrepl.vsphere.faults import not_a_vcenter, transport_error
from vrepl.vsphere.tracing import traced_exchange

FIRST_ANSWER = 15.0
"""Seconds for the first answer of a server: a wrong address or a firewall must not look like patience."""
LONGEST_VERSIONS = 1 << 20
"""Bytes of a list of API versions; vCenter's has a few thousand."""

KEPT_OPEN = 32
"""Connections that stay open between requests: as many as a failover of many VMs has at a time."""

DISCONNECTED = (OSError, HTTPException, ExpatError)
"""What a connection ends with that broke, or that speaks something else."""


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers a site's requests, on connections that stay open: each costs a TLS handshake."""

    name: str
    port: int
    thumbprint: str | None
    """SHA-256 of its certificate, where that is pinned."""
    timeout: float
    """Seconds for each piece of an answer."""
    context: ssl.SSLContext
    _idle: deque[Any] = field(default_factory=deque, repr=False, compare=False)

    @property
    def place(self) -> str:
        return f"{self.name}:{self.port}"

    def unreached(self, cause: BaseException, doing: str) -> VreplError:
        """What to say of one of DISCONNECTED."""
        if isinstance(cause, ssl.SSLCertVerificationError):
            return tls.certificate_error(
                cause, server=self.name, port=self.port, pinned=self.thumbprint, timeout=min(self.timeout, 10.0)
            )
        return transport_error(cause, server=self.name, port=self.port, doing=doing)

    def request(
        self, method: str, target: str, body: bytes | None, *, headers: Mapping[str, str], what: str, limit: int
    ) -> tuple[int, bytes]:
        """Status and body, of `limit` bytes at the most.

        Raises VsphereError for a longer one, and what `unreached` makes of a connection.
        """

        def exchange(connection: Any) -> tuple[int, bytes]:
            kept = False
            try:
                connection.request(method, target, body=body, headers=dict(headers))
                reply = connection.getresponse()
                content: bytes = reply.read(limit + 1)
                kept = not getattr(reply, "will_close", True) and bool(reply.isclosed())
                return int(reply.status), content
            finally:
                if kept and len(self._idle) < KEPT_OPEN:
                    self._idle.append(connection)
                else:
                    connection.close()

        try:
            status, content = self._on_open(exchange) or exchange(self._connect(self.timeout))
        except DISCONNECTED as cause:
            raise self.unreached(cause, what) from cause
        tracing = trace.current()
        if tracing is not None:
            traced_exchange(tracing, self.place, method, target, len(body or b""), status, len(content))
        if len(content) > limit:
            raise VsphereError(f"{what}: the answer is longer than {limit} bytes")
        return status, content

    def _on_open(self, exchange: Callable[[Any], tuple[int, bytes]]) -> tuple[int, bytes] | None:
        """On a connection that is open already. None: there is none, or the server has closed it meanwhile."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        try:
            return exchange(connection)
        except TimeoutError:
            raise
        except DISCONNECTED:
            return None

    def hang_up(self) -> None:
        """Close what is open between requests."""
        while self._idle:
            self._idle.pop().close()

    def newest_version(self) -> str:
        """The newest API version that both sides speak, by the server's vimServiceVersions.xml."""
        # With a time limit of its own: pyVim's negotiation waits for a silent address for minutes.
        connection = self._connect(min(FIRST_ANSWER, self.timeout))
        try:
            connection.request("GET", "/sdk/vimServiceVersions.xml")
            reply = connection.getresponse()
            status, reason, content = reply.status, reply.reason, _read_all(reply, FIRST_ANSWER)
            if status != 200:
                raise HTTPException(f"{status} {reason}")
            # The peer is verified, and expat refuses entities that grow.
            offered = {text for text in ElementTree.fromstring(content).itertext() if text.strip()}  # noqa: S314
        except DISCONNECTED as cause:
            raise self.unreached(cause, "ask for API versions") from cause
        except ElementTree.ParseError as cause:
            raise not_a_vcenter(self.place, "its list of API versions is none") from cause
        finally:
            connection.close()
        known: Any = VmomiSupport
        for version in known.GetServiceVersions("vim25"):
            if known.versionIdMap[version] in offered:
                return str(version)
        raise not_a_vcenter(self.place, "it offers no API version that vrepl knows")

    def _connect(self, timeout: float) -> Any:
        soap: Any = SoapAdapter
        return soap.HTTPSConnection(self.name, self.port, context=self.context, timeout=timeout)


def _read_all(reply: HTTPResponse, seconds: float) -> bytes:
    """A short answer, whole: neither a flood nor a drip keeps anybody."""
    until = time.monotonic() + seconds
    read = b""
    while piece := reply.read1(65536):
        read += piece
        if len(read) > LONGEST_VERSIONS:
            raise HTTPException(f"the answer is longer than {LONGEST_VERSIONS} bytes")
        if time.monotonic() > until:
            raise TimeoutError(f"the answer was not complete within {seconds:.0f} s")
    return read
