"""Cassettes of vSphere's API: recorded from the lab, replayed without a network.

Every call is a POST to `/sdk`, so a reply belongs to a request by its body. Addresses, passwords, cookies and session
keys are replaced on the way in and on the way out, so a cassette never holds them and a replay does not need them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyVim.connect
import pyVmomi.SoapAdapter
import vcr
from vcr.request import Request
from vcr.stubs import VCRHTTPSConnection

RECORD_VARIABLE = "VREPL_RECORD"
"""Set by `python -m tests.record`: a file that says which servers to record from."""

FOLDER = Path(__file__).parent.parent / "cassettes"
PLACE = "https://vcenter.test"
"""Where every recorded server seems to be."""

_ADDRESS = re.compile(r"^https://[^/]+")
_SECRETS = (
    # Login: user and password; a password's own element also in other calls.
    (re.compile(r"(<(?:\w+:)?password\b[^>]*>)[^<]*(</(?:\w+:)?password>)"), r"\1SCRUBBED\2"),
    (re.compile(r"(<(?:\w+:)?userName\b[^>]*>)[^<]*(</(?:\w+:)?userName>)"), r"\1operator\2"),
    (re.compile(r"(<(?:\w+:)?fullName>)(?!VMware)[^<]*(</(?:\w+:)?fullName>)"), r"\1operator\2"),
    # govcsim's session key is its cookie, too.
    (re.compile(r"(<LoginResponse\b[^>]*><returnval><key>)[^<]*(</key>)"), r"\1SCRUBBED-SESSION\2"),
    (re.compile(r"(<(?:\w+:)?sessionId\b[^>]*>)[^<]*(</(?:\w+:)?sessionId>)"), r"\1SCRUBBED-SESSION\2"),
    (re.compile(r"(<(?:\w+:)?(?:cloneTicket|ticket)\b[^>]*>)[^<]*(</(?:\w+:)?(?:cloneTicket|ticket)>)"), r"\1X\2"),
)
_MACHINE_PATH = re.compile(r"(?<![\w.\-])/(?:tmp|work|root|home|var|Users)/[^<\"\s]*")
_KEPT_HEADERS = frozenset({"content-type"})


def scrub(text: str) -> str:
    """The text without what nobody else may know."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return _MACHINE_PATH.sub("/vmfs/volumes/scrubbed", text)


def scrub_request(request: Request) -> Request:
    body = request.body
    text = body.decode() if isinstance(body, bytes) else (body or "")
    return Request(
        method=request.method,
        uri=_ADDRESS.sub(PLACE, request.uri),
        body=scrub(text).encode() if body is not None else None,
        headers={},
    )


def scrub_response(response: dict[str, Any]) -> dict[str, Any]:
    body = response["body"]["string"]
    text = body.decode() if isinstance(body, bytes) else body
    return {
        "status": response["status"],
        "headers": {key: value for key, value in response["headers"].items() if key.lower() in _KEPT_HEADERS},
        "body": {"string": scrub(text).encode()},
    }


def same_body(first: Request, second: Request) -> None:
    assert first.body == second.body


@contextmanager
def cassette(name: str, *, record: bool) -> Iterator[Any]:
    """Records to, or replays from, `tests/cassettes/NAME.yaml`; a replay that is asked for more than it has fails."""
    recorder = vcr.VCR(
        record_mode="all" if record else "none",
        match_on=("method", "uri", "body"),
        before_record_request=scrub_request,
        before_record_response=scrub_response,
        decode_compressed_response=True,
        # vcrpy's own patch of http.client is not safe where two threads open connections.
        skip_patchers=("httplib",),
        # pyVmomi imports the class by name, so it has to be told where.
        custom_patches=(
            (pyVmomi.SoapAdapter, "HTTPSConnection", VCRHTTPSConnection),
            (pyVim.connect, "HTTPSConnection", VCRHTTPSConnection),
        ),
    )
    path = FOLDER / f"{name}.yaml"
    if record:
        path.unlink(missing_ok=True)
    with recorder.use_cassette(str(path)) as tape:
        yield tape
        if not record:
            assert tape.all_played, f"{name}: {len(tape)} calls were recorded, {tape.play_count} were made"
