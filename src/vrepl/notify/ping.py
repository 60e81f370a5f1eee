"""Pings in the way of healthchecks.io: `URL/start`, `URL` and `URL/fail`. Who does not hear one in time, alarms."""

from __future__ import annotations

import urllib.error
import urllib.request
from enum import StrEnum
from urllib.parse import quote

from pydantic import SecretStr

from vrepl.errors import VreplError

SECONDS = 10.0
LONGEST = 10_000
"""Bytes of words with a ping; healthchecks.io keeps 100 kB (Pinging API, "Attaching Logs")."""


class Signal(StrEnum):
    START = "/start"
    SUCCESS = ""
    FAIL = "/fail"


def ping(url: SecretStr, job: str, signal: Signal, words: str = "") -> None:
    """`{job}` in the URL becomes the job's name. Raises VreplError, which does not hold the URL."""
    place = url.get_secret_value().replace("{job}", quote(job, safe="")).rstrip("/") + signal.value
    if not place.startswith(("https://", "http://")):
        raise VreplError("`ping` of [notify] is no http(s) URL")
    request = urllib.request.Request(place, data=words.encode()[:LONGEST], method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            answer.read(1024)
    except (OSError, ValueError) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        raise VreplError(f"the ping of job {job} was not taken: {reason}") from None
