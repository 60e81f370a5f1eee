"""How to reach one site."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vrepl.vsphere.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """How to reach and log in to one site; times in seconds."""

    name: str
    server: str
    user: str
    password: str = field(repr=False)
    port: int = 443
    nfc_port: int = 902
    nfc_compression: str = "none"
    ca_file: Path | None = None
    """PEM; None: the system's CAs."""
    thumbprint: str | None = None
    """SHA-256 of the server's certificate, instead of CAs."""
    timeout: float = 180.0
    """For one call; longer than the longest WaitForUpdatesEx, and than vSphere takes to list a big disk's changes."""
    task_timeout: float = 4 * 3600.0
    """For one task: merging a large snapshot may take hours, and one that never ends must not hold its job for ever."""
    prompt: bool = False
    """Ends of tasks are told at once, though that takes more calls: where others wait for them."""
    keepalive: float = 600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
