"""What real sites do to their clients, all at once: `vrepl lab set nasty=on`, or VREPL_LAB_NASTY=1 for every new lab.

What only some sites do and no client can live with (change tracking that misses changes, a guest system that no host
knows) is not in it.
"""

from __future__ import annotations

import os

SWITCH = "VREPL_LAB_NASTY"

NASTY: dict[str, str] = {
    "cbt_false": "0.05",
    "cbt_per_disk": "on",
    "cbt_stun_ms": "100",
    "cbt_empty_page": "on",
    "description_limit": "8192",
    "hardware_max": "19",
}
KIND: dict[str, str] = {
    "cbt_false": "0",
    "cbt_per_disk": "off",
    "cbt_stun_ms": "0",
    "cbt_empty_page": "off",
    "description_limit": "0",
    "hardware_max": "none",
}
"""The same settings as a lab has them that nobody asked to be nasty."""


def wanted() -> bool:
    """Does the environment ask for nasty labs?"""
    return os.environ.get(SWITCH, "") not in ("", "0")
