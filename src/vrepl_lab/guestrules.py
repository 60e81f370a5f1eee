"""What `vrepl lab set guest=…` says of guests: when they boot, what they answer, how they shut down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

GRAMMAR = "guest=PATTERN[,KEY=VALUE]...   (guests=none forgets all)"
EXAMPLES = (
    "guest=*,ports=22+443",
    "guest=web-*,boots=no",
    "guest=db-01*,boot_ms=3000,heartbeat=red,shutdown=hang",
    "guest=*,login=root:secret",
)


def number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a number")
    return int(text)


def yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r}: expected yes or no")
    return text == "yes"


def ports(text: str) -> list[int]:
    return [] if text in ("", "none") else [number(port) for port in text.split("+")]


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r}: expected {', '.join(words)}")
        return text

    return parse


KEYS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "boots": (yes, "yes | no: the guest comes up after power-on"),
    "boot_ms": (number, "milliseconds that it takes"),
    "ports": (ports, "PORT+PORT | none: TCP ports that it answers, on a loopback address"),
    "ip": (str, "its first address"),
    "heartbeat": (one_of("green", "yellow", "red", "gray"), "what its Tools' heartbeat shows"),
    "shutdown": (one_of("ok", "hang", "refused"), "what ShutdownGuest comes to"),
    "shutdown_ms": (number, "milliseconds that it takes"),
    "login": (str, "USER:PASSWORD that guest operations take"),
    "customize": (one_of("ok", "fail", "hang"), "what its customisation comes to"),
}


def parse_guest(text: str) -> dict[str, Any]:
    """One rule, as POST /settings takes it in `guests`. Raises ValueError."""
    pattern, *pairs = text.split(",")
    if not pattern:
        raise ValueError("expected PATTERN,KEY=VALUE,...")
    rule: dict[str, Any] = {"vm": pattern}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in KEYS:
            raise ValueError(f"no key {key!r} (known are {', '.join(KEYS)})")
        rule[key] = KEYS[key][0](value)
    return rule
