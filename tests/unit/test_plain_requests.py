"""Requests beside SOAP share connections, and one that the server closed meanwhile is no error."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vrepl.errors import ConnectionFailedError
from vrepl.vsphere.plain_requests import KEPT_OPEN, Server


class Files(ThreadingHTTPServer):
    """Answers with what was put last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.connections = 0
        self.content = b""
        self.closes_after: int | None = None
        """Answers on a connection, after which it is closed although nobody said so."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Files
    answered = 0

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(self.server.content)

    def do_PUT(self) -> None:
        self.server.content = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"")

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.answered += 1
        self.close_connection = self.answered == self.server.closes_after


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    def connect(name: str, port: int, *, context: Any, timeout: float) -> HTTPConnection:
        del context  # TLS is not what this is about
        return HTTPConnection(name, port, timeout=timeout)

    monkeypatch.setattr("pyVmomi.SoapAdapter.HTTPSConnection", connect)
    with Files() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def client(files: Files) -> Server:
    return Server("127.0.0.1", files.server_address[1], None, 5.0, ssl.create_default_context())


def ask(server: Server, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    return server.request(method, "/folder/a", body, headers={}, what="ask", limit=1000)


def test_requests_share_a_connection_and_side_by_side_each_has_its_own(files: Files) -> None:
    server = client(files)
    for number in range(10):
        assert ask(server, "PUT", b"%d" % number) == (200, b"")
        assert ask(server) == (200, b"%d" % number)
    assert files.connections == 1
    threads = [threading.Thread(target=ask, args=(server,)) for _ in range(2 * KEPT_OPEN)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server._idle) <= KEPT_OPEN
    server.hang_up()
    assert not server._idle


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(files: Files) -> None:
    files.closes_after = 2
    server = client(files)
    for number in range(10):
        assert ask(server, "PUT", b"%d" % number) == (200, b"")
        assert files.content == b"%d" % number
    assert files.connections == 5


def test_a_longer_answer_is_refused_and_its_rest_met_by_nobody(files: Files) -> None:
    server = client(files)
    files.content = b"x" * 2000
    with pytest.raises(Exception, match="longer than 1000 bytes"):
        ask(server)
    files.content = b"short"
    assert ask(server) == (200, b"short")


def test_a_server_that_is_gone_is_told_of(files: Files) -> None:
    server = client(files)
    assert ask(server)[0] == 200
    files.shutdown()
    files.server_close()
    server.hang_up()
    with pytest.raises(ConnectionFailedError):
        ask(server)
