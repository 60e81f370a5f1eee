"""A login to one site: verified TLS, keepalive, login again when the session has died, retries, the count of calls.

Every call of pyVmomi passes through `Session.invoke`, so nothing else in this package catches pyVmomi's or the
transport's exceptions: what comes out is always a VreplError.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from vrepl import trace
from vrepl.errors import (
    AuthenticationError,
    ConnectionFailedError,
    InterruptedRunError,
    VreplError,
    VsphereError,
    stopped_on_request,
)
from vrepl.vsphere import tls
from vrepl.vsphere.api import kind_of, ref_of, vim, vmodl
from vrepl.vsphere.faults import (
    OutcomeUnknownError,
    error_of,
    fault_name,
    may_have_happened,
)
from vrepl.vsphere.plain_requests import DISCONNECTED, Server
from vrepl.vsphere.retry import Retrier
from vrepl.vsphere.site_settings import SiteSettings
from vrepl.vsphere.stub import Stub

__all__ = ["Session", "SiteSettings"]

log = logging.getLogger(__name__)

NOT_REPEATABLE = frozenset(
    {"CreateSnapshot_Task", "CreateVM_Task", "CloneVM_Task", "CreateFolder", "RegisterVM_Task", "WaitForUpdatesEx"}
)
"""Methods that make something new each time (or hand out news once): after a lost connection their caller has to look
before it asks again."""

_WITHOUT_SESSION = frozenset({"RetrieveServiceContent", "Login", "Logout", "Fetch"})
"""Methods that a dead session does not stop, or that would only ask about it (`Fetch` reads `currentSession`)."""

SILENCE = 4.0
"""Seconds without an answer after which a stop no longer counts on a site; a clean-up that it would have answered in
that time is done."""
BRIEF = 3.0
"""Seconds for the answer to a logout, which nothing depends on."""
WHOLE_ANSWER = 2.0
"""Times a call's time limit, which is for each piece of an answer: what all pieces together may take."""
LONGEST_ANSWER = 1 << 30
"""Bytes of an answer; the properties of 5,000 VMs have some fifty million."""


class Session:
    """Logs in at first use. Thread-safe."""

    def __init__(self, settings: SiteSettings, *, sleep: Callable[[float], None] | None = None) -> None:
        self.settings = settings
        self._closed = threading.Event()
        self._hurried = threading.Event()
        self._stirred = threading.Event()
        """Set by whatever ends a pause early."""
        self._silent = threading.Event()
        self._heard = 0
        """Answers so far, whatever they said."""
        self._sleep = sleep or self._wait
        self._retrier = Retrier(settings.retry, self._sleep)
        tracing = trace.current()
        if tracing is not None:
            tracing.hide(settings.password)
        self._context = tls.make_context(ca_file=settings.ca_file, thumbprint=settings.thumbprint)
        self._server = Server(settings.server, settings.port, settings.thumbprint, settings.timeout, self._context)
        self._lock = threading.RLock()
        self._count_lock = threading.Lock()
        self._calls = 0
        self._generation = 0
        self._stub: Stub | None = None
        self._content: Any = None
        self._user_session: Any = None

    # --- what callers use

    @property
    def soap_calls(self) -> int:
        """API calls sent so far, retries included."""
        return self._calls

    @property
    def generation(self) -> int:
        """How often this session has logged in: views, filters and tokens die with the login that made them."""
        return self._generation

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def retrier(self) -> Retrier:
        return self._retrier

    @property
    def content(self) -> Any:
        """The ServiceContent of the site; logs in if that has not happened yet."""
        if self._content is None:
            self.login()
        return self._content

    @property
    def is_vcenter(self) -> bool:
        """False: a standalone ESXi host."""
        return str(self.content.about.apiType) == "VirtualCenter"

    @property
    def api_version(self) -> str:
        return str(self.content.about.apiVersion)

    @property
    def product(self) -> str:
        """Such as `VMware vCenter Server 8.0.3 build-24022515`."""
        return str(self.content.about.fullName)

    @property
    def key(self) -> str:
        """The ID of the present login; not the cookie, which is a secret."""
        _ = self.content
        return str(self._user_session.key)

    @property
    def user_name(self) -> str:
        """As vSphere knows the user, domain included."""
        _ = self.content
        return str(self._user_session.userName)

    def object(self, kind: Any, ref: str) -> Any:
        """A reference to a managed object; no call is made."""
        _ = self.content
        return kind(ref, self._stub)

    def login(self) -> None:
        """Connect and log in, once.

        Raises ConnectionFailedError, CertificateError, AuthenticationError, or VsphereError if it is no vSphere.
        """
        with self._lock:
            if self._content is not None:
                return
            self._refuse_if_closed()
            self._stub = Stub(
                self.invoke,
                server=self.settings.server,
                port=self.settings.port,
                version=self._negotiate(),
                context=self._context,
                timeout=self.settings.timeout,
            )
            content = vim.ServiceInstance("ServiceInstance", self._stub).RetrieveContent()
            self._authenticate(content)
            self._content = content
            self._generation += 1
            threading.Thread(target=self._keep_alive, name=f"keepalive-{self.settings.name}", daemon=True).start()

    def certificate(self) -> bytes:
        """The site's certificate (DER), verified."""
        if self._context.peer is None:
            settings = self.settings
            address = (settings.server, settings.port)
            try:
                with (
                    socket.create_connection(address, timeout=settings.timeout) as plain,
                    self._context.wrap_socket(plain, server_hostname=settings.server),
                ):
                    pass
            except OSError as cause:
                raise self._server.unreached(cause, "read the certificate") from cause
        assert self._context.peer is not None
        return self._context.peer

    def pause(self, seconds: float) -> None:
        """Sleep; a close() ends it, and raises InterruptedRunError."""
        self._sleep(seconds)
        self._refuse_if_closed()

    def hurry(self) -> None:
        """The operator asked to stop: whoever waits to try again gets InterruptedRunError.

        What begins after this is clean-up, and is tried again as ever.
        """
        self._hurried.set()
        self._stirred.set()

    def give_up_if_silent(self) -> bool:
        """Watch the site until `close`; once it has answered nothing for SILENCE seconds, every call fails at once.

        For a thread of its own, after a stop. True: it was silent, and was given up.
        """
        while not self._closed.is_set():
            heard = self._heard
            probe = threading.Thread(target=self._probe, name=f"probe-{self.settings.name}", daemon=True)
            probe.start()
            until = time.monotonic() + SILENCE
            while probe.is_alive() and self._heard == heard and time.monotonic() < until:
                if self._closed.wait(0.1):
                    return False
            if self._heard == heard:
                self._silent.set()
                self._stirred.set()
                self._context.cut_off()
                return True
            if self._closed.wait(1.0):
                break
        return False

    def refuse_if_silent(self) -> None:
        """Raises VsphereError, which nobody tries again, once the site was given up."""
        if self._silent.is_set():
            settings = self.settings
            raise VsphereError(
                f"{settings.server}:{settings.port} has stopped answering, and a stop was asked for",
                hint=f"what is left on site {settings.name} is seen to by the next run",
            )

    def _probe(self) -> None:
        with suppress(VreplError):
            self._server.newest_version()
            self._heard += 1

    def close(self) -> None:
        """Log out, as far as the server still answers; every later call raises InterruptedRunError."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._stirred.set()
        if self._stub is None:
            return
        try:
            self._stub.expect_no_answer_later_than(BRIEF)
            if self._content is not None and not self._silent.is_set():
                self._content.sessionManager.Logout()
        except VreplError as error:
            log.debug("%s: logout: %s", self.settings.name, error)
        drop: Any = self._stub.DropConnections
        drop()
        self._server.hang_up()

    # --- the way of every call

    def invoke(self, target: Any, info: Any, send: Callable[[], Any]) -> Any:
        """Make one call, again where that can help. Raises VreplErrors only."""
        method = str(info.wsdlName)
        doing = f"{method} of {_words(target)}"

        def once() -> Any:
            if method != "Logout":
                self._refuse_if_closed()
            self.refuse_if_silent()
            generation = self._generation
            with self._count_lock:
                self._calls += 1
            try:
                self._context.bound(WHOLE_ANSWER * self.settings.timeout, LONGEST_ANSWER)
                answer = send()
                self._heard += 1
                return answer
            except vmodl.MethodFault as fault:
                self._heard += 1
                dead = fault_name(fault) == "NotAuthenticated"
                if dead and method in _WITHOUT_SESSION:
                    # An answer to the question whether the session lives, and no passing trouble: asking on is idle.
                    raise VsphereError(f"{doing}: not authenticated", fault="NotAuthenticated") from fault
                if dead and not self.revive(generation):
                    raise VsphereError(
                        f"{doing}: refused as not authenticated although the session is alive",
                        fault="NotAuthenticated",
                        hint="the user lacks a right here: see `vrepl check`",
                    ) from fault
                raise error_of(fault, doing=doing) from fault
            except DISCONNECTED as cause:
                self.refuse_if_silent()
                error = self._server.unreached(cause, doing)
                if method in NOT_REPEATABLE and error.retryable and may_have_happened(cause):
                    raise OutcomeUnknownError(error.message, hint=error.hint) from cause
                raise error from cause

        return self._retrier.run(once, what=doing, again=self._worth_another_try)

    def _worth_another_try(self, error: VreplError) -> bool:
        if not error.retryable or self.closed or isinstance(error, OutcomeUnknownError):
            return False
        # Until the first login has worked, a wrong name or port is likelier than a passing fault: say so at once.
        cause = error.__cause__ or error
        return self._generation > 0 or (may_have_happened(cause) and not isinstance(cause, TimeoutError))

    # --- what is no SOAP

    def exchange(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        what: str,
        limit: int = 1 << 20,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """One HTTPS request that may be made again: its status and body, of `limit` bytes at the most.

        It is this login's, unless `headers` say who asks: then nothing of this login is sent.

        Raises ConnectionFailedError and what else `invoke` makes of a connection, VsphereError for a longer answer.
        """

        def send() -> tuple[int, bytes]:
            assert self._stub is not None, "a session that has logged in"
            cookie: Any = self._stub.cookie
            said = {"Cookie": str(cookie).partition(";")[0]} if headers is None else headers
            return self._server.request(method, target, body, headers=said, what=what, limit=limit)

        def once() -> tuple[int, bytes]:
            self._refuse_if_closed()
            generation = self._generation
            status, content = send()
            if status == 401 and headers is None and self.revive(generation):
                status, content = send()
            return status, content

        _ = self.content
        return self._retrier.run(once, what=what, again=self._worth_another_try)

    # --- login

    def _negotiate(self) -> str:
        """The newest API version that both sides speak, by the server's vimServiceVersions.xml."""
        return self._retrier.run(
            self._server.newest_version, what="ask for API versions", again=self._worth_another_try
        )

    def _authenticate(self, content: Any) -> None:
        settings = self.settings
        try:
            self._user_session = content.sessionManager.Login(settings.user, settings.password, None)
        except AuthenticationError as error:
            said = error.message.partition(": ")[2]
            raise AuthenticationError(
                f"site {settings.name}: {settings.server} refuses the login of {settings.user} ({said})",
                hint=(error.hint or "").replace("of the site", f"in [sites.{settings.name}]"),
            ) from error
        log.info("%s: logged in to %s as %s", self.settings.name, self.settings.server, self.settings.user)

    def revive(self, generation: int) -> bool:
        """Log in again, unless another thread has, and only if the session is really dead (as oslo.vmware does).

        `generation` is that of the login which met the trouble. False: it is alive, and the trouble another one: a
        live session that is told NotAuthenticated lacks a right, and logging in again would only fill vCenter's table.
        """
        with self._lock:
            if self._generation != generation:
                return True
            try:
                alive = self._content.sessionManager.currentSession is not None
            except VreplError as error:
                if isinstance(error, ConnectionFailedError):
                    raise
                alive = False
            if alive:
                return False
            log.warning("%s: the session has ended; logging in again", self.settings.name)
            self._authenticate(self._content)
            self._generation += 1
            return True

    # --- threads

    def _keep_alive(self) -> None:
        """vCenter ends a session after 30 idle minutes, and a long copy makes no calls."""
        while not self._closed.wait(self.settings.keepalive):
            try:
                self.object(vim.ServiceInstance, "ServiceInstance").CurrentTime()
            except VreplError as error:
                log.debug("%s: keepalive: %s", self.settings.name, error)

    def _wait(self, seconds: float) -> None:
        if self._hurried.is_set():
            self._closed.wait(seconds)
        elif self._stirred.wait(seconds) and not self._closed.is_set():
            raise stopped_on_request()

    def _refuse_if_closed(self) -> None:
        if self._closed.is_set():
            raise InterruptedRunError(f"the connection to site {self.settings.name} was closed")


def _words(target: Any) -> str:
    """Kind and ref of an object, without the ref where it says nothing: of singletons, and of what a session made."""
    kind, ref = str(kind_of(target)), ref_of(target)
    return kind if ref.startswith("session[") or ref.lower() == kind.lower() else f"{kind} {ref}"
