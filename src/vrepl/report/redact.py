"""Text that is given away: known secrets, and whatever looks like one, are taken out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from urllib.parse import quote

from vrepl.trace import OF_A_SESSION

HIDDEN = "***"
SHORTEST = 4
"""Characters: a shorter secret is hidden only where it stands alone, else every word with these letters would go."""

_NAMES = r"\w*(?:password|passwd|secret|token|api_?key)\w*"
_SHAPES = (
    # user:password@host, and tokens where Apprise has them
    (re.compile(r"(?<=://)[^/\s\"'@]+@"), f"{HIDDEN}@"),
    (re.compile(r"(?i)\b(vmware[_-]soap[_-]session\W+)[^\s;,\"']+"), rf"\g<1>{HIDDEN}"),
    (
        re.compile(r"(?i)\b((?:(?:set-)?cookie|authorization|vmware-api-session-id)\"?\s*[:=]\s*\"?)[^\"\n]+"),
        rf"\g<1>{HIDDEN}",
    ),
    (re.compile(rf"(?i)\b({_NAMES}\"?\s*[:=]\s*\")[^\"]*(?=\")"), rf"\g<1>{HIDDEN}"),
    (re.compile(rf"(?i)\b({_NAMES}\s*[:=]\s*)('[^']*'|[^\s,;\"{{}}\[\]]+)"), rf"\g<1>{HIDDEN}"),
    (OF_A_SESSION, f"session[{HIDDEN}]"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL), HIDDEN),
)


def _forms(secret: str) -> set[str]:
    """As it stands, and as URLs, JSON, XML and Python's own quoting write it."""
    json_forms = {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    return {secret, quote(secret, safe=""), escape(secret), repr(secret)[1:-1], *json_forms}


def redact(text: str, secrets: Iterable[str]) -> str:
    """Without any of `secrets`, in the forms in which they are written (URL, JSON), and without what looks like one."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        for form in _forms(secret):
            if not form:
                continue
            if len(form) >= SHORTEST:
                text = text.replace(form, HIDDEN)
            else:
                text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", HIDDEN, text)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text
