"""How a test reaches a site of a lab through vrepl's own adapter."""

from __future__ import annotations

from typing import Any

from vrepl.vsphere.session import SiteSettings
from vrepl_lab.lab import SERVER, USER, Lab


def settings_of(lab: Lab, site: str, **changes: Any) -> SiteSettings:
    """Of one site, whose certificate the lab's own authority signed; `changes`: fields of SiteSettings."""
    running = lab.sites[site]
    known = {"port": running.port, "nfc_port": running.nfc_port, "ca_file": lab.folder / "ca.pem"}
    return SiteSettings(site, SERVER, USER, lab.password(site), **{**known, **changes})


def pinned_settings_of(lab: Lab, site: str, **changes: Any) -> SiteSettings:
    """The same, trusted by its certificate's fingerprint alone."""
    return settings_of(lab, site, ca_file=None, thumbprint=lab.sites[site].sha256_thumbprint, **changes)
