"""What a mover of a pair is told of its end of the byte stream, where the two are on different machines."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """One end of one TLS connection between two movers: one peer, one accept, then the listener is gone."""

    peer: str
    """The name in the other end's certificate."""
    certificate: str = field(repr=False)
    """PEM."""
    key: str = field(repr=False)
    """PEM; it travels on standard input alone, and stays in memory."""
    authority: str = field(repr=False)
    """PEM of the run's own authority, which signed both certificates and nothing else."""
    address: str | None = None
    """Where to connect; None: listen."""
    port: int = 0
    """Of the address, or the first that may be listened on; 0: any."""
    last_port: int = 0
    bind: str = ""
    """The address of its machine that is listened on; "": all."""
    congestion: str = "bbr"
    """TCP's congestion control, where the system has it and lets this user choose; empty: the system's own.

    A loss of 0.1 % leaves of 100 Mbit/s at 50 ms an eighth to a connection of `cubic`, nine tenths to one of `bbr`.
    """
    encrypted: bool = True
    """False: bytes as they are, to measure what TLS costs."""
