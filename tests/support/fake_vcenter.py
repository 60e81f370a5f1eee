"""A vCenter in a thread: it can be logged in to, tells the time, and fails on demand. TLS is real."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from vrepl_lab.certificates import Authority, Certificate

USER, PASSWORD = "operator@vsphere.local", "correct horse"

VERSIONS = (
    '<?xml version="1.0" encoding="UTF-8"?><namespaces version="1.0"><namespace><name>urn:vim25</name>'
    "<version>8.0.2.0</version></namespace></namespaces>"
)
ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope'
    ' xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>{}</soapenv:Body></soapenv:Envelope>'
)
CONTENT = (
    '<returnval><rootFolder type="Folder">group-d1</rootFolder>'
    '<propertyCollector type="PropertyCollector">propertyCollector</propertyCollector>'
    "<about><name>VMware vCenter Server</name><fullName>VMware vCenter Server 8.0.2</fullName><vendor>VMware</vendor>"
    "<version>8.0.2</version><build>1</build><osType>linux-x64</osType><productLineId>vpx</productLineId>"
    "<apiType>VirtualCenter</apiType><apiVersion>8.0.2.0</apiVersion></about>"
    '<sessionManager type="SessionManager">SessionManager</sessionManager></returnval>'
)
USER_SESSION = (
    "<key>{key}</key><userName>VSPHERE.LOCAL\\operator</userName><fullName>o</fullName>"
    "<loginTime>2024-01-01T00:00:00Z</loginTime><lastActiveTime>2024-01-01T00:00:00Z</lastActiveTime>"
    "<locale>en</locale><messageLocale>en</messageLocale>"
)
TASK = '<returnval type="Task">task-1</returnval>'


@dataclass
class FakeVcenter:
    """`script[method]` holds what the next calls meet.

    `fault:NAME`, `http:CODE`, `drip`, `flood`, `html`, `drop`, `drop-after`, `expire`.
    """

    certificate: Certificate
    port: int = 0
    script: dict[str, list[str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    carried_out: list[str] = field(default_factory=list)
    logins: int = 0
    versions: str = VERSIONS
    session: str | None = None

    def count(self, method: str) -> int:
        return self.calls.count(method)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/sdk/vimServiceVersions.xml":
            self._reply(404, "no such page")
            return
        self._next("vimServiceVersions.xml", lambda: (200, self.server.fake.versions))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        found = re.search(r"<soapenv:Body><(\w+) ", body)
        assert found is not None
        method = found[1]
        self._next(method, lambda: self._carry_out(method, body))

    def _next(self, method: str, carry_out: Callable[[], tuple[int, str]]) -> None:
        fake = self.server.fake
        fake.calls.append(method)
        waiting = fake.script.get(method, [])
        step = waiting.pop(0) if waiting else ""
        kind, _, argument = step.partition(":")
        if kind == "drop":
            self.close_connection = True
            return
        if kind == "drop-after":
            carry_out()
            self.close_connection = True
            return
        if kind == "drip":  # a byte now and then, for ever
            self._without_end(b"x", pause=0.02)
            return
        if kind == "flood":
            self._without_end(b"x" * 65536, pause=0.0)
            return
        if kind == "http":
            self._reply(int(argument), "no")
            return
        if kind == "fault":
            self._fault(argument)
            return
        if kind == "html":
            self._reply(200, "<html><body>Welcome</body>")
            return
        if kind == "expire":
            fake.session = None
        self._reply(*carry_out())

    def _without_end(self, piece: bytes, pause: float) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(piece)
                time.sleep(pause)

    def _carry_out(self, method: str, body: str) -> tuple[int, str]:
        fake = self.server.fake
        if method == "RetrieveServiceContent":
            return self._result(method, CONTENT)
        if method == "Login":
            if re.findall(r"<(?:userName|password)\b[^>]*>([^<]*)<", body) != [USER, PASSWORD]:
                text = "Cannot complete login due to an incorrect user name or password."
                return self._fault_body("InvalidLogin", text)
            fake.logins += 1
            fake.session = f"session-{fake.logins}"
            return self._result(method, f"<returnval>{USER_SESSION.format(key=fake.session)}</returnval>")
        logged_in = fake.session is not None and fake.session in (self.headers.get("Cookie") or "")
        if method == "Fetch":  # pyVmomi's way to read sessionManager.currentSession
            inner = USER_SESSION.format(key=fake.session)
            shown = f'<returnval xsi:type="UserSession">{inner}</returnval>' if logged_in else ""
            return self._result(method, shown)
        if not logged_in:
            return self._fault_body("NotAuthenticated", "The session is not authenticated.")
        fake.carried_out.append(method)
        if method == "CurrentTime":
            return self._result(method, "<returnval>2024-05-01T12:00:00Z</returnval>")
        if method.endswith("_Task"):
            return self._result(method, TASK)
        return self._result(method, "")

    def _result(self, method: str, inner: str) -> tuple[int, str]:
        return 200, ENVELOPE.format(f'<{method}Response xmlns="urn:vim25">{inner}</{method}Response>')

    def _fault_body(self, name: str, text: str) -> tuple[int, str]:
        return 500, ENVELOPE.format(
            f"<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{text}</faultstring><detail>"
            f'<{name}Fault xmlns="urn:vim25" xsi:type="{name}"/></detail></soapenv:Fault>'
        )

    def _fault(self, name: str) -> None:
        self._reply(*self._fault_body(name, ""))

    def _reply(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(content)))
        if self.server.fake.session:
            self.send_header("Set-Cookie", f'vmware_soap_session="{self.server.fake.session}"; Path=/')
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, fake: FakeVcenter, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fake = fake
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that refuses our certificate is no news."""


@contextmanager
def fake_vcenter(folder: Path, *, kind: str = "good", names: tuple[str, ...] = ("127.0.0.1",)) -> Iterator[FakeVcenter]:
    """Serves on a free port; `folder` gets ca.pem, cert.pem, key.pem. `kind` is one of the lab's certificate kinds."""
    authority = Authority("test CA")
    certificate = authority.issue(list(names), kind)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.pem").write_bytes(authority.pem)
    certificate.write(folder / "cert.pem", folder / "key.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    fake = FakeVcenter(certificate=certificate)
    server = _Server(fake, context)
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
