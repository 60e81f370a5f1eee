"""Client of a simulator's control socket: HTTP over a Unix socket (docs/lab-internals.md, section 6)."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from vrepl_lab.errors import LabError

TIMEOUT_S = 120.0


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float = TIMEOUT_S) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        # A socket's address holds 107 bytes; by way of its open folder it fits, however deep the lab lies.
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


class Control:
    """Requests to one site's simulator. Every method raises LabError if it is unreachable or refuses."""

    def __init__(self, site: str, path: Path) -> None:
        self._site = site
        self._path = path

    def get(self, path: str, **query: str | int | None) -> Any:
        return self._request("GET", path, query=query)

    def post(self, path: str, body: Any = None, **query: str | int | None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        return self._request("POST", path, content, query)

    def put(self, path: str, body: bytes, **query: str | int | None) -> Any:
        return self._request("PUT", path, body, query)

    def _request(
        self, method: str, path: str, body: bytes = b"", query: Mapping[str, str | int | None] | None = None
    ) -> Any:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        target = f"{path}?{urlencode(given)}" if given else path
        connection = UnixConnection(self._path)
        try:
            headers = {"Content-Type": "application/json" if method == "POST" else "application/octet-stream"}
            connection.request(method, target, body=body, headers=headers)
            reply = connection.getresponse()
            content = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise LabError(
                f"the simulator of site {self._site} does not answer on {self._path}: {error}",
                hint="is this lab up? see `vrepl lab status`",
            ) from error
        finally:
            connection.close()
        if reply.status >= 300:
            text = content.decode(errors="replace").strip()
            raise LabError(f"site {self._site}: {method} {path}: {message_of(text) or f'HTTP {reply.status}'}")
        return decoded(content)

    def write(self, vm: str, index: int, offset: int, pieces: Iterable[bytes]) -> int:
        """What a running guest writes; returns the bytes written."""
        written = 0
        for piece in pieces:
            self.put("/disk/write", piece, vm=vm, index=index, offset=offset + written)
            written += len(piece)
        return written


def message_of(text: str) -> str:
    """The simulator's error text, whether it came as JSON ({"error": …}) or plain."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return str(value.get("error", text)) if isinstance(value, dict) else text


def decoded(content: bytes) -> Any:
    try:
        return json.loads(content) if content.strip() else None
    except ValueError:
        return content.decode(errors="replace")
