"""TLS to a site: verified against CAs or a pinned SHA-256 thumbprint, and never blind.

pyVmomi's own `thumbprint` is not used: it checks only the first connection of its pool, and disables verification for
all later ones. Here the check sits in the SSL context, so no byte of HTTP crosses a connection that was not verified.
"""

from __future__ import annotations

import errno
import hashlib
import re
import socket
import ssl
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from vrepl.errors import CertificateError, ConfigError

# X509_V_ERR_… of OpenSSL
_NOT_YET, _EXPIRED, _SELF_SIGNED, _SELF_SIGNED_IN_CHAIN = 9, 10, 18, 19
_NO_ISSUER, _WRONG_NAME, _WRONG_ADDRESS = 20, 62, 64


def colons(digest: bytes) -> str:
    """`AB:CD:…`, as vSphere and VDDK write thumbprints."""
    return digest.hex(":").upper()


def sha256_thumbprint(certificate: bytes) -> str:
    """SHA-256 of a DER certificate; what an operator pins."""
    return colons(hashlib.sha256(certificate).digest())


def sha1_thumbprint(certificate: bytes) -> str:
    """SHA-1 of a DER certificate, which VDDK asks for; of a verified certificate only."""
    return colons(hashlib.sha1(certificate, usedforsecurity=False).digest())


def parse_thumbprint(text: str) -> bytes:
    """A pinned SHA-256 thumbprint, with or without colons. Raises ConfigError for anything else."""
    digits = re.sub(r"[:\s]", "", text)
    if len(digits) == 40 and re.fullmatch(r"[0-9A-Fa-f]+", digits):
        raise ConfigError("thumbprint", ["this is a SHA-1 thumbprint; vrepl pins SHA-256 (32 bytes) only"])
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digits):
        raise ConfigError("thumbprint", ["a SHA-256 thumbprint has 32 bytes in hexadecimal, such as AB:CD:…"])
    return bytes.fromhex(digits)


class WrongCertificateError(ssl.SSLCertVerificationError):
    """The peer's certificate is not the pinned one."""


class Bounds(threading.local):
    """What the answer to the call that this thread makes may take; None: nobody has said."""

    until: float | None = None
    """By time.monotonic()."""
    left: int = 0
    """Bytes."""


class _CountedSocket(ssl.SSLSocket):
    """Known to its context from before the handshake, in which a peer that is frozen keeps it waiting.

    A socket's own time limit is for each piece: a peer that drips would never meet it.
    """

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        bounds = self.context.bounds if isinstance(self.context, VerifiedContext) else None
        if bounds is None or bounds.until is None:
            return super().recv_into(buffer, nbytes, flags)
        if time.monotonic() > bounds.until:
            raise TimeoutError("the answer comes too slowly to be waited for")
        count = super().recv_into(buffer, nbytes, flags)
        bounds.left -= count
        if bounds.left < 0:
            raise OSError(errno.EMSGSIZE, "the answer is longer than any that a vCenter gives")
        return count

    def do_handshake(self, block: bool = False) -> None:
        if isinstance(self.context, VerifiedContext):
            self.context.sockets.add(self)
        super().do_handshake(block)


class VerifiedContext(ssl.SSLContext):
    """A client context that remembers the certificate of the last peer that it verified (`peer`, DER)."""

    peer: bytes | None = None
    pinned: bytes | None = None
    sslsocket_class = _CountedSocket
    sockets: weakref.WeakSet[ssl.SSLSocket]
    """Those made with this context."""
    bounds: Bounds

    def bound(self, seconds: float, size: int) -> None:
        """For what this thread receives from now on, until it is bounded anew."""
        self.bounds.until, self.bounds.left = time.monotonic() + seconds, size

    def cut_off(self) -> None:
        """Whoever waits for one of these peers meets the end of the stream, now; from any thread."""
        for one in list(self.sockets):
            with suppress(OSError):
                # Not SSLSocket's own: that takes the TLS state away under the thread that waits.
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(*args, **kwargs)
        certificate = wrapped.getpeercert(binary_form=True)
        if self.pinned is not None and (certificate is None or hashlib.sha256(certificate).digest() != self.pinned):
            wrapped.close()
            raise WrongCertificateError("the server's certificate is not the pinned one")
        self.peer = certificate
        return wrapped


def make_context(*, ca_file: Path | None, thumbprint: str | None) -> VerifiedContext:
    """A context that verifies by the pinned thumbprint if there is one, else by the CA file, else by the system's CAs.

    A pin names one certificate, so with it neither the issuer, the host name nor the dates are asked.
    """
    context = VerifiedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sockets = weakref.WeakSet()
    context.bounds = Bounds()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if thumbprint is not None:
        context.pinned = parse_thumbprint(thumbprint)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # wrap_socket compares the certificate itself
        return context
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except FileNotFoundError:
            raise CertificateError(f"CA file {ca_file} does not exist", hint="set ca_file of the site") from None
        except (OSError, ssl.SSLError) as error:
            raise CertificateError(
                f"CA file {ca_file} cannot be used: {error}", hint="it must hold certificates in PEM"
            ) from None
    else:
        context.load_default_certs()
    return context


def presented_certificate(server: str, port: int, timeout: float) -> bytes | None:
    """The DER certificate that a server shows, unverified and for an error's text only; nothing is sent to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((server, port), timeout=timeout) as plain, context.wrap_socket(plain) as tls:
            return tls.getpeercert(binary_form=True)
    except OSError:
        return None


def certificate_error(
    cause: ssl.SSLCertVerificationError, *, server: str, port: int, pinned: str | None, timeout: float
) -> CertificateError:
    """What is wrong with a certificate, and the thumbprint that was presented, for comparing and pinning."""
    shown = presented_certificate(server, port, timeout)
    code = getattr(cause, "verify_code", 0)
    if isinstance(cause, WrongCertificateError):
        problem = "the certificate is not the one whose thumbprint is pinned"
    elif code == _EXPIRED:
        problem = f"the certificate has expired{_on(shown)}"
    elif code == _NOT_YET:
        problem = "the certificate is not valid yet (is this machine's clock right?)"
    elif code == _SELF_SIGNED:
        problem = "the certificate is self-signed and not trusted"
    elif code in {_SELF_SIGNED_IN_CHAIN, _NO_ISSUER}:
        problem = "the certificate is signed by an authority that is not trusted"
    elif code in {_WRONG_NAME, _WRONG_ADDRESS}:
        problem = f"the certificate is not for the name {server}{_names(shown)}"
    else:
        problem = f"the certificate cannot be verified ({getattr(cause, 'verify_message', '') or cause})"
    if shown is None:
        hint = "set ca_file or thumbprint_sha256 of the site"
    else:
        thumbprint = sha256_thumbprint(shown)
        expected = f"pinned is {colons(parse_thumbprint(pinned))}; " if pinned else ""
        hint = (
            f"{expected}the server shows SHA-256 {thumbprint}: compare it with the server's own, then set "
            f'thumbprint_sha256 = "{thumbprint}", or ca_file to its authority'
        )
    return CertificateError(f"{server}:{port}: {problem}", hint=hint)


def _on(certificate: bytes | None) -> str:
    if certificate is None:
        return ""
    from cryptography import x509  # takes its time to load, and is for what goes wrong alone

    try:
        return f" on {x509.load_der_x509_certificate(certificate).not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return ""


def _names(certificate: bytes | None) -> str:
    if certificate is None:
        return ""
    from cryptography import x509  # takes its time to load, and is for what goes wrong alone

    try:
        extension = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        names = [str(name.value) for name in extension.value]
    except (ValueError, x509.ExtensionNotFound):
        return ""
    return f" but for {', '.join(names[:5])}" if names else ""
