"""From a ticket to an open NFC session: authd's dialogue and the classic handshake.

    host:    220 VMware Authentication Daemon Version 1.10: SSL Required, …, NFCSSL supported/t, SHA256 supported
    (TLS)
    client:  SESSION <ticket>            no answer
    client:  BANNER<space>               220 …
    client:  THUMBPRINT_SHA2 PlainText   200 <SHA-256 of the host's certificate>
    client:  PROXY <service>[ssl]        200 Connect ha-nfc[ssl]
    (TLS again for nbdssl, else in clear)
    NFC's classic messages, then AIO

Sources: cloudbase/OpenVixDiskLib docs/nfc_auth.md, and for a host without vCenter hystax/OpenVixDiskLib's;
vatesfr/xen-orchestra vectura for the words of the banner and for what may be sent before what is waited for.
"""

from __future__ import annotations

import re

from vrepl.errors import DiskError
from vrepl.model import TransportMode
from vrepl.nfc import frames
from vrepl.nfc.channel import Channel
from vrepl.nfc.codes import nonsense, refused
from vrepl.nfc.frames import FrameError, Refusal
from vrepl.ports import NfcTicket

TAG = b"PlainText"
"""What VDDK asks THUMBPRINT_SHA2 with, and says again in NFC's own handshake."""
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECRET = re.compile(r"[!-~]{1,512}")
"""Printable, no spaces: nothing that could end the line early and say more."""


def connect(ticket: NfcTicket, mode: TransportMode) -> Channel:
    """An NFC session that is ready for AIO's records. Raises DiskError and below, CertificateError."""
    if not _SERVICE.fullmatch(ticket.service) or not _SECRET.fullmatch(ticket.session_id):
        raise DiskError("the site gave a ticket that cannot be presented to a host", code=13)
    channel = Channel(ticket.host, ticket.port)
    try:
        _present(channel, ticket, encrypted=mode is TransportMode.NBDSSL)
        _handshake(channel)
    except BaseException:
        channel.close()
        raise
    return channel


def capabilities(banner: str) -> frozenset[str]:
    """The words of `220 …: one, two/t, three`, without what follows a slash."""
    _, _, words = banner.partition(": ")
    return frozenset(word.partition("/")[0].strip() for word in words.split(","))


def _present(channel: Channel, ticket: NfcTicket, *, encrypted: bool) -> None:
    banner = channel.receive_line()
    if not banner.startswith("220 "):
        raise _unexpected(channel, "its first line", banner)
    words = capabilities(banner)
    for wanted in ("SHA256 supported", "NFCSSL supported")[: 2 if encrypted else 1]:
        if wanted not in words:
            raise DiskError(
                f"the ESXi host {channel.name} does not offer {wanted.removesuffix(' supported')}",
                code=6,
                hint="vrepl's own engine wants ESXi 7 or newer; an older host needs VDDK",
            )
    channel.start_tls(ticket.sha1_thumbprint)
    channel.send(f"SESSION {ticket.session_id}\r\n".encode())
    channel.send(b"BANNER \r\n")
    answer = channel.receive_line()
    if not answer.startswith("220 "):
        raise _not_let_in(channel, answer)
    channel.send(b"THUMBPRINT_SHA2 " + TAG + b"\r\n")
    answer = channel.receive_line()
    if not answer.startswith("200 "):
        raise _not_let_in(channel, answer)
    channel.confirm(answer.removeprefix("200 "))
    suffix = "ssl" if encrypted else ""
    channel.send(f"PROXY {ticket.service}{suffix}\r\n".encode())
    answer = channel.receive_line()
    if answer != f"200 Connect ha-nfc{suffix}":
        raise _not_let_in(channel, answer)
    if encrypted:
        channel.restart_tls()
    else:
        channel.drop_tls()


def _not_let_in(channel: Channel, answer: str) -> DiskError:
    if answer.startswith("530"):
        return DiskError(
            f"the ESXi host {channel.name} does not take the ticket: {answer}",
            code=3014,
            hint="a ticket serves once and for a short time: is the host's clock right, and is it connected to its "
            "vCenter?",
        )
    return _unexpected(channel, "its answer", answer)


def _unexpected(channel: Channel, what: str, line: str) -> DiskError:
    return nonsense(channel.name, FrameError(f"{what} is {line[:120]!r}"))


def _handshake(channel: Channel) -> None:
    """Each message goes out by itself: the host reads one of them per TLS record."""
    for message in frames.greeting_messages(TAG):
        channel.send(message)
    _expect(channel, frames.SESSION_PARAMS_REPLY)
    _expect(channel, frames.VERSION)
    for message in frames.introduction_messages():
        channel.send(message)
    _expect(channel, frames.AIO_OPEN)


def _expect(channel: Channel, kind: int) -> None:
    message = channel.receive(frames.CLASSIC_SIZE)
    told = frames.classic_kind(message)
    if told == frames.COMPLETE:
        raise refused("starting an NFC session", Refusal(1, "the host ends it"))
    if told != kind:
        raise nonsense(channel.name, FrameError(f"a message of type {told} instead of {kind}"))
