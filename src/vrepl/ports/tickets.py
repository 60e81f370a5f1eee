"""What opens a disk at an ESXi host without VDDK: a ticket, asked of the site and presented to the host once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TicketRequest:
    """For which file of which VM; `writable` where it is to be written."""

    site: str
    vm_ref: str
    path: str
    writable: bool


@dataclass(frozen=True, slots=True)
class NfcTicket:
    """Where to go, whom to expect there, and the secret that opens the disk: good for one connection."""

    host: str
    port: int
    sha1_thumbprint: str
    """Of the host's certificate; it came over a connection to the site that was verified."""
    service: str
    """What authd is asked for."""
    session_id: str = field(repr=False)


TicketSource = Callable[[TicketRequest], NfcTicket]
"""Raises VreplError where the site gives none."""
