"""The lab's certificate authority and the certificates of its vCenters, good ones and bad ones."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_FOR = dt.timedelta(days=3650)
KINDS = ("good", "expired", "self-signed")


@dataclass(frozen=True, slots=True)
class Certificate:
    pem: bytes
    key_pem: bytes
    der: bytes

    @property
    def sha1_thumbprint(self) -> str:
        """Colon-separated, upper case, as VDDK wants it."""
        return colons(hashlib.sha1(self.der, usedforsecurity=False).hexdigest())

    @property
    def sha256_thumbprint(self) -> str:
        return colons(hashlib.sha256(self.der).hexdigest())

    def write(self, certificate: Path, key: Path) -> None:
        certificate.write_bytes(self.pem)
        key.touch(mode=0o600)
        key.write_bytes(self.key_pem)


def colons(digits: str) -> str:
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2)).upper()


class Authority:
    """A CA that lives as long as this object: its key is never written."""

    def __init__(self, name: str = "vrepl lab CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        public = self._key.public_key()
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + VALID_FOR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, names: Sequence[str], kind: str = "good") -> Certificate:
        """A server certificate for DNS names and IP addresses; `kind` is one of KINDS."""
        if kind not in KINDS:
            raise ValueError(f"certificate kind {kind!r} is none of {', '.join(KINDS)}")
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        expires = now - dt.timedelta(days=2) if kind == "expired" else now + VALID_FOR
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alone = kind == "self-signed"
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if alone else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=30))
            .not_valid_after(expires)
            .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key((key if alone else self._key).public_key()),
                critical=False,
            )
            .sign(key if alone else self._key, hashes.SHA256())
        )
        return Certificate(
            pem=certificate.public_bytes(serialization.Encoding.PEM),
            key_pem=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            der=certificate.public_bytes(serialization.Encoding.DER),
        )


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
