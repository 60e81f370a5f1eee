"""The connection to an ESXi host: plain at first, then TLS, then (for nbdssl) TLS anew over the same socket.

Nothing of a certificate is believed but what can be compared: its SHA-1 is the ticket's, which came over a verified
connection to the site; its SHA-256 is what the host itself names within the first session; and the second session shows
the same certificate as the first. Names and dates in it say nothing that this does not.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress

from vrepl.errors import CertificateError, DiskError, TransientDiskError
from vrepl.nfc.codes import lost

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""What a host gets for an answer."""
LONGEST_LINE = 1024
"""Bytes."""


def thumbprint_of(digits: str) -> str:
    """Lower-case hexadecimal digits alone, whatever stands between them."""
    return digits.replace(":", "").replace(" ", "").strip().lower()


def same_thumbprint(one: str, other: str) -> bool:
    return hmac.compare_digest(thumbprint_of(one).encode(), thumbprint_of(other).encode())


class Channel:
    """A connected socket, blocking with a time limit until `go_on` makes it one for a loop that polls."""

    def __init__(self, host: str, port: int) -> None:
        """Raises TransientDiskError."""
        self.name = f"{host}:{port}"
        self._certificate = b""
        try:
            self._socket: socket.socket = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except socket.gaierror as error:
            raise TransientDiskError(
                f"the ESXi host's name {host} cannot be resolved: {error.strerror}",
                code=14008,
                hint="this machine must be able to resolve the names of all ESXi hosts",
            ) from error
        except OSError as error:
            raise TransientDiskError(
                f"the NFC port of {self.name} cannot be reached: {error.strerror or error}",
                code=14009,
                hint="is port 902 of every ESXi host open from this machine? `vrepl check` tries each of them",
            ) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(ANSWER_SECONDS)

    def start_tls(self, sha1_thumbprint: str) -> None:
        """The first session. Raises CertificateError unless it is the ticket's host."""
        self._certificate = self._handshake()
        shown = hashlib.sha1(self._certificate, usedforsecurity=False).hexdigest()
        if not same_thumbprint(shown, sha1_thumbprint):
            raise CertificateError(
                f"the certificate of {self.name} has the SHA-1 thumbprint {shown}, not that of the ticket, "
                f"{thumbprint_of(sha1_thumbprint)}",
                hint="does something between change the connection, or was the host's certificate replaced and the "
                "host not reconnected to its vCenter?",
            )

    def confirm(self, sha256_thumbprint: str) -> None:
        """What the host says of its certificate within the first session. Raises CertificateError."""
        shown = hashlib.sha256(self._certificate).hexdigest()
        if not same_thumbprint(shown, sha256_thumbprint):
            raise CertificateError(
                f"{self.name} calls its certificate {thumbprint_of(sha256_thumbprint)}, and shows {shown}",
                hint="something between answers in the host's place",
            )

    def restart_tls(self) -> None:
        """The second session. Raises CertificateError where it shows another certificate."""
        self.drop_tls()
        if self._handshake() != self._certificate:
            raise CertificateError(
                f"the second TLS session with {self.name} shows another certificate than the first",
                hint="something between answers in the host's place",
            )

    def drop_tls(self) -> None:
        """Go on in clear on the same connection: neither side says goodbye to the session."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket = socket.socket(fileno=self._socket.detach())
            self._socket.settimeout(ANSWER_SECONDS)

    def _handshake(self) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # by thumbprint instead, before anything is said
        try:
            wrapped = context.wrap_socket(self._socket)
            certificate = wrapped.getpeercert(binary_form=True)
        except (OSError, ValueError) as error:
            raise TransientDiskError(
                f"TLS with {self.name} fails: {error}",
                code=14010,
                hint="is it an ESXi host's NFC port (902) that answers there?",
            ) from error
        self._socket = wrapped
        if certificate is None:
            raise CertificateError(f"{self.name} shows no certificate")
        return certificate

    # -- while it blocks -------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Raises TransientDiskError."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise lost(self.name, f"was lost while it was talked to: {error.strerror or error}") from error

    def receive(self, size: int) -> bytearray:
        """Exactly so many bytes. Raises TransientDiskError."""
        into = bytearray(size)
        view = memoryview(into)
        while view:
            try:
                count = self._socket.recv_into(view)
            except TimeoutError as error:
                raise lost(self.name, f"is silent for {ANSWER_SECONDS:.0f} s") from error
            except OSError as error:
                raise lost(self.name, f"was lost: {error.strerror or error}") from error
            if count == 0:
                raise lost(self.name, "was closed by the host in the middle of an answer")
            view = view[count:]
        return into

    def receive_line(self) -> str:
        """Up to a line's end, and not a byte past it. Raises DiskError for what is no line."""
        line = bytearray()
        while not line.endswith(b"\n"):
            if len(line) >= LONGEST_LINE:
                raise DiskError(
                    f"{self.name} says a line of more than {LONGEST_LINE} bytes",
                    code=14010,
                    hint="is it an ESXi host's NFC port (902) that answers there?",
                )
            line += self.receive(1)
        return line.decode("latin-1").strip()

    # -- for a loop that polls -------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """From here on `try_send` and `try_receive` do not wait."""
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def try_send(self, views: Sequence[memoryview]) -> int:
        """How much of what lies in these, one after the other, could be sent; 0 where nothing can be now.

        A call for all of them, but with TLS, which takes one at a time. Raises OSError.
        """
        try:
            if len(views) > 1 and not isinstance(self._socket, ssl.SSLSocket):
                return self._socket.sendmsg(views)
            return self._socket.send(views[0])
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    def try_receive(self, view: memoryview) -> int | None:
        """How much came, 0 at the end of the connection; None where nothing can be had now. Raises OSError.

        TLS gives a record of 16 KiB at a time: as many are taken as are there.
        """
        received = 0
        try:
            while received < len(view):
                count = self._socket.recv_into(view[received:])
                received += count
                if count == 0 or not isinstance(self._socket, ssl.SSLSocket):
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return received or None
        return received

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()
