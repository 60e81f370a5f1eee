"""Notices over Apprise, which speaks to a hundred services; its URLs hold tokens, so they are secrets."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pydantic import SecretStr

from vrepl.errors import UsageError, VreplError

SECONDS = 30.0
"""What all services together may take to be told."""


def send(urls: Sequence[SecretStr], title: str, body: str) -> None:
    """Raises VreplError where not every service took it; no message holds a URL."""
    try:
        import apprise
    except ImportError as error:
        raise UsageError(
            "notices to services take the package apprise, which is not installed",
            hint="pip install 'vrepl[notify]', or drop `urls` from [notify]",
        ) from error
    notifier = apprise.Apprise()
    for number, url in enumerate(urls, 1):
        if not notifier.add(url.get_secret_value()):
            raise VreplError(f"URL {number} of [notify] is none that Apprise knows", hint="its form: appriseit.com")
    taken: list[bool] = []
    # In a thread: the time that a service takes is Apprise's own affair, and a dead one must not hold a run.
    thread = threading.Thread(
        target=lambda: taken.append(bool(notifier.notify(title=title, body=body))), name="apprise", daemon=True
    )
    thread.start()
    thread.join(SECONDS)
    if not taken:
        raise VreplError(f"the services of [notify] were not told within {SECONDS:.0f} s")
    if not taken[0]:
        raise VreplError("not every service of [notify] took the notice")
