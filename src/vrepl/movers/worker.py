"""A data mover: the child process that opens disks through one disk engine, and copies.

`python -m vrepl.movers.worker PARENT_PID`. Its environment gives it an LD_LIBRARY_PATH of its own; it imports nothing
that uses OpenSSL, unless its engine does. The main thread starts the engine, then works off one request after the other
and so owns every handle; a second thread reads requests, so that a stop or another rate is obeyed in mid-transfer.
Standard output belongs to the messages alone: whatever else writes there ends up on standard error. The process dies
with its parent, at once: a half-dead mover must not go on writing to a disk that the next run has taken over.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from queue import SimpleQueue
from typing import Any

from vrepl.errors import InterruptedRunError, MoverError, VreplError
from vrepl.movers import messages
from vrepl.movers.engine import DiskEngine, StartEngine
from vrepl.movers.messages import RECORDS_ASKED, Initialise, Json
from vrepl.movers.probe import probe_disk
from vrepl.ports import (
    AllocatedExtents,
    AttachedDisk,
    DiskAddress,
    DiskRequest,
    NfcTicket,
    SiteConnection,
    TicketRequest,
    TransferOrder,
    TransferProgress,
    VerifyOrder,
)
from vrepl.stream.error_json import error_from_json, error_to_json
from vrepl.stream.remote import RemoteDisk
from vrepl.stream.serve import serve_disk
from vrepl.transport.decorators import ThrottledDisk
from vrepl.transport.disk import DiskReader, DiskWriter
from vrepl.transport.pipeline import Pipeline
from vrepl.transport.throttle import Throttle
from vrepl.transport.transfer import Records, perform_transfer, perform_verify
from vrepl.transport.tuning import Tuning

PR_SET_PDEATHSIG = 1
GARBAGE_THRESHOLD = 20_000
"""Objects. Blocks are full of small tuples that refer to nothing in a circle: with Python's 700 a tenth of the
interpreter's time goes into looking for circles among them."""
LEASE_SECONDS = 150.0
"""A mover on another machine that hears nothing for so long ends: shorter than ssh takes to give up a connection
(`proxy.ssh`), so that none writes on when another has taken its place."""
ORPHANED = 3
"""Exit status of a mover whose parent has gone."""


class Pipes:
    """The two ends that belong to messages."""

    def __init__(self) -> None:
        """Takes standard input and output away from everybody else."""
        self._input = os.fdopen(os.dup(0), "rb")
        self._output = os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """From any thread."""
        line = memoryview(messages.to_line(message))
        with self._lock:
            while line:
                line = line[os.write(self._output, line) :]

    def receive(self) -> Json | None:
        """The next message; None when the parent has closed its end."""
        line = self._input.readline()
        return messages.from_line(line) if line.endswith(b"\n") else None


class Mover:
    """One process's VDDK and the requests it works off."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._requests: SimpleQueue[Json] = SimpleQueue()
        self._engine: DiskEngine | None = None
        self._records: Records | None = None
        self._tuning = Tuning()
        self._lock = threading.Lock()
        self._running: Pipeline | None = None
        self._stopped = False
        self._secrets: set[str] = set()
        self._streams: dict[int, socket.socket] = {}
        self._answers: SimpleQueue[Json] = SimpleQueue()
        self._asked = 0
        self._alive_at = 0.0
        self._lease: threading.Thread | None = None
        self._read_throttle, self._write_throttle = Throttle(), Throttle()
        self._operations: dict[str, Callable[[Json], Any]] = {
            "init": self._init,
            "transfer": self._transfer,
            "verify": self._verify,
            "serve": self._serve,
            "probe": self._probe,
            "prepare_for_access": self._prepare_for_access,
            "end_access": self._end_access,
            "cleanup": self._cleanup,
        }

    def run(self) -> None:
        """Work until the parent says exit."""
        threading.Thread(target=self._listen, name="requests", daemon=True).start()
        while True:
            request = self._requests.get()
            if request["op"] == "exit":
                break
            reply: Json = {"id": request["id"]}
            try:
                reply["ok"] = self._operations[request["op"]](request)
            except VreplError as error:
                reply["error"] = error_to_json(error)
            except Exception as error:  # a mistake in vrepl must reach the report, not only standard error
                reply["error"] = error_to_json(MoverError(f"{type(error).__name__}: {error}"))
                sys.excepthook(*sys.exc_info())
            self._pipes.send(reply)
        if self._engine is not None:
            self._engine.exit()

    # -- the thread that listens ---------------------------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            request = self._pipes.receive()
            if request is None:
                os._exit(ORPHANED)
            match request["op"]:
                case "stop":
                    self._stop()
                case "set_rate":
                    self._set_rates(request)
                case what if what == "ask" or what in messages.ASKED:
                    self._answers.put(request)
                case "alive":
                    self._alive_at = time.monotonic()
                    if self._lease is None:
                        self._lease = threading.Thread(target=self._end_with_lease, name="lease", daemon=True)
                        self._lease.start()
                case _:
                    self._requests.put(request)

    def _end_with_lease(self) -> None:
        while (left := self._alive_at + LEASE_SECONDS - time.monotonic()) > 0:
            time.sleep(left)
        os._exit(ORPHANED)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = self._running
        self._read_throttle.open()
        self._write_throttle.open()
        if running is not None:
            running.stop()

    def _set_rates(self, request: Json) -> None:
        self._read_throttle.set_rate(request.get("read", 0))
        self._write_throttle.set_rate(request.get("write", 0))

    # -- requests, on the main thread ----------------------------------------------------------------------------

    def _init(self, request: Json) -> Json:
        settings = messages.decode(Initialise, request["settings"])
        self._records = self._records_of(settings)
        self._tuning = settings.tuning
        start: StartEngine = _named(settings.engine)
        engine_settings = settings.engine_settings
        its_own = replace(engine_settings, state_folder=engine_settings.state_folder.expanduser())
        self._engine = start(its_own, self._log, self._ask_ticket, self)
        return self._engine.about

    def _records_of(self, settings: Initialise) -> Records:
        if settings.log_writer != RECORDS_ASKED:
            return Records(_named(settings.open_lookup), _log_opener(_named(settings.log_writer)))
        from vrepl.movers.asked_records import AskedLog, AskedLookup

        return Records(partial(AskedLookup, self._ask_question), partial(AskedLog, self._ask_question))

    def _transfer(self, request: Json) -> Json:
        order = messages.decode(TransferOrder, request["order"])
        result = perform_transfer(
            order, self._opener(request), self._its_records, tuning=self._tuning,
            progress=self._progress, running=self._enter,
        )  # fmt: skip
        return messages.encode(result)

    def _verify(self, request: Json) -> Json:
        order = messages.decode(VerifyOrder, request["order"])
        result = perform_verify(
            order, self._opener(request), self._its_records, tuning=self._tuning,
            progress=self._progress, running=self._enter,
        )  # fmt: skip
        return messages.encode(result)

    def _serve(self, request: Json) -> int:
        """The target's half of a pair: the other mover's pipeline writes to our disk. Returns bytes received."""
        address = messages.decode(DiskAddress, request["address"])
        opener = self._opener(request)
        return serve_disk(lambda: opener.open(address, writable=request["writable"]), self._stream(request["stream"]))

    def _probe(self, request: Json) -> Json:
        address = messages.decode(DiskAddress, request["address"])
        site = self._sites(request)[address.site]
        return probe_disk(self._its_engine, address, site, request["offsets"])

    def _prepare_for_access(self, request: Json) -> None:
        self._its_engine.prepare_for_access(self._site(request), request["vm_ref"], request["identity"])

    def _end_access(self, request: Json) -> None:
        self._its_engine.end_access(self._site(request), request["vm_ref"], request["identity"])

    def _cleanup(self, request: Json) -> list[int]:
        return list(self._its_engine.cleanup(self._site(request), request["vm_ref"]))

    # -- helpers ---------------------------------------------------------------------------------------------------

    @property
    def _its_engine(self) -> DiskEngine:
        if self._engine is None:
            raise MoverError("the data mover was not initialised")
        return self._engine

    @property
    def _its_records(self) -> Records:
        if self._records is None:
            raise MoverError("the data mover was not initialised")
        return self._records

    # -- what the engine asks of the control process, from the main thread; raises what it raised there ------------

    def attach(self, request: DiskRequest) -> AttachedDisk:
        """As `ports.ControlDesk`."""
        return messages.decode(AttachedDisk, self._ask("attach", request))

    def detach(self, disk: AttachedDisk) -> None:
        """As `ports.ControlDesk`."""
        self._ask("detach", disk)

    def allocated(self, request: DiskRequest) -> AllocatedExtents:
        """As `ports.ControlDesk`."""
        return messages.decode(AllocatedExtents, self._ask("allocated", request))

    def _ask_ticket(self, request: TicketRequest) -> NfcTicket:
        ticket = messages.decode(NfcTicket, self._ask("ticket", request))
        self._secrets.add(ticket.session_id)
        return ticket

    def _ask(self, what: str, request: messages.Message) -> Json:
        ok: Json = self._answer_to({"event": what, "request": messages.encode(request)})
        return ok

    def _ask_question(self, question: str, **arguments: Any) -> Any:
        """What a mover on another machine does not have."""
        return self._answer_to({"event": "ask", "question": question} | arguments)

    def _answer_to(self, message: Json) -> Any:
        self._asked += 1
        self._pipes.send(message | {"id": self._asked})
        while (answer := self._answers.get())["id"] != self._asked:
            pass
        if "error" in answer:
            raise error_from_json(answer["error"])
        return answer["ok"]

    def _sites(self, request: Json) -> dict[str, SiteConnection]:
        sites = {name: messages.decode(SiteConnection, value) for name, value in request["sites"].items()}
        self._secrets.update(site.password for site in sites.values() if site.password)
        return sites

    def _site(self, request: Json) -> SiteConnection:
        return next(iter(self._sites(request).values()))

    def _opener(self, request: Json) -> _Opener:
        stream = request.get("stream") if request["op"] == "transfer" else None
        return _Opener(
            self._its_engine, self._sites(request), self._read_throttle, self._write_throttle,
            None if stream is None else self._stream(stream),
        )  # fmt: skip

    def _stream(self, descriptor: int) -> socket.socket:
        """The socket to the other mover of a pair, inherited under this number."""
        if descriptor not in self._streams:
            self._streams[descriptor] = socket.socket(fileno=descriptor)
        return self._streams[descriptor]

    def _enter(self, pipeline: Pipeline, running: bool) -> None:
        with self._lock:
            if running and self._stopped:
                raise InterruptedRunError("stopped")
            self._running = pipeline if running else None

    def _progress(self, progress: TransferProgress) -> None:
        self._pipes.send({"event": "progress"} | messages.encode(progress))

    def _log(self, kind: str, text: str) -> None:
        for secret in self._secrets:
            text = text.replace(secret, "********")
        self._pipes.send({"event": "log", "kind": kind, "text": text})


class _Opener:
    """Opens disks through the engine, or the target's at the other mover of a pair; held to this mover's rates."""

    def __init__(
        self,
        engine: DiskEngine,
        sites: Mapping[str, SiteConnection],
        read_throttle: Throttle,
        write_throttle: Throttle,
        stream: socket.socket | None,
    ) -> None:
        self._stream = stream
        self._engine = engine
        self._sites = sites
        self._read_throttle = read_throttle
        self._write_throttle = write_throttle

    def open_reader(self, address: DiskAddress) -> DiskReader:
        return ThrottledDisk(self.open(address, writable=False), self._read_throttle)

    def open_writer(self, address: DiskAddress) -> DiskWriter:
        if self._stream is not None:
            return ThrottledDisk(RemoteDisk(self._stream), self._write_throttle)
        return ThrottledDisk(self.open(address, writable=True), self._write_throttle)

    def open(self, address: DiskAddress, *, writable: bool) -> DiskWriter:
        """Through the engine, at any rate."""
        return self._engine.open(address, self._sites[address.site], writable=writable)


def _named(path: str) -> Callable[..., Any]:
    """What `package.module:name` names."""
    module, _, name = path.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def _log_opener(writer: Callable[..., Any]) -> Callable[..., Any]:
    return lambda order: writer(order.log, order.target.capacity, order.attempt)


def die_with_parent(parent: int) -> None:
    """SIGKILL when the thread that started us ends, and no life at all if it is gone already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(ORPHANED)


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold passwords
    gc.freeze()  # what is imported by now is never garbage
    gc.set_threshold(GARBAGE_THRESHOLD)
    Mover(Pipes()).run()


if __name__ == "__main__":
    main()
