"""The control process's side of one data mover: starts it, asks it, hears it out, and notices when it dies."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import IO, Any

from vrepl import trace
from vrepl.errors import DiskError, InterruptedRunError, LibraryError, MoverError, VreplError
from vrepl.movers import messages
from vrepl.movers.launching import Launched, Launcher, LocalLauncher
from vrepl.movers.messages import Json
from vrepl.movers.record_keeper import RecordKeeper
from vrepl.movers.settings import MoverSettings
from vrepl.ports import AttachedDisk, DiskAttachments, DiskRequest, NfcTicket, TicketRequest, TicketSource
from vrepl.state_folder import state_folder
from vrepl.stream.end import StreamEnd
from vrepl.stream.error_json import error_from_json, error_to_json

logger = logging.getLogger("vrepl.mover")

STOP_SECONDS = 0.8
"""What a mover gets to end a transfer properly after stop; then it is killed."""
CLOSING_STOP_SECONDS = 4.0
"""Where a checkpoint takes closing the disk, a ticket, and reading back: else up to a minute's work would be lost."""
EXIT_SECONDS = 2.0
START_SECONDS = 60.0
LEVELS = {"log": logging.DEBUG, "warn": logging.INFO, "panic": logging.ERROR}
"""VDDK's own lines. Its warnings speak of much that is no news (cron would mail it every run): what fails comes back as
an error of the call; the lines stand in the log file, and what a mover warned of last in the error if it dies."""
ALIVE_SECONDS = 10.0
"""Between signs of life to a mover on another machine, which ends without them (`worker.LEASE_SECONDS`)."""


def no_tickets(request: TicketRequest) -> NfcTicket:
    """For movers whose engine asks for none."""
    raise DiskError(f"nobody gives tickets for {request.path} here", code=13)


class Spawner:
    """Starts processes from one thread that lives as long as they do.

    Linux sends PDEATHSIG when the *thread* that started a process ends, not when its process does: a worker thread
    that ends would take its movers along.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Launched], SimpleQueue[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="mover-spawner", daemon=True)
        self._thread.start()

    def start(self, call: Callable[[], Launched]) -> Launched:
        """Make the call on the spawner's thread. Raises what it raises."""
        answers: SimpleQueue[Any] = SimpleQueue()
        self._work.put((call, answers))
        answer = answers.get()
        if isinstance(answer, BaseException):
            raise answer
        launched: Launched = answer
        return launched

    def end(self) -> None:
        """Ends the thread, and with it what it started that still runs."""
        self._work.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            call, answers = work
            try:
                answers.put(call())
            except (OSError, VreplError) as error:
                answers.put(error)


@dataclass(slots=True)
class _Inbox:
    """Replies to the request that is under way; None says that the mover is gone."""

    replies: SimpleQueue[Json | None] = field(default_factory=SimpleQueue)
    on_progress: Callable[[Json], None] | None = None


class MoverProcess:
    """One data mover. One request at a time; `stop`, `set_rates` and `kill` from any thread."""

    def __init__(
        self,
        settings: MoverSettings,
        spawner: Spawner,
        *,
        pass_fds: Sequence[int] = (),
        tickets: TicketSource = no_tickets,
        attachments: DiskAttachments | None = None,
        launcher: Launcher | None = None,
        stream: StreamEnd | None = None,
    ) -> None:
        """Start and initialise. `tickets` and `attachments` are asked from threads of their own.

        `launcher`: of the settings' machine. `stream`: its end of a stream between two machines. Raises LibraryError,
        or MoverError.
        """
        self._records = RecordKeeper()
        self._gone = threading.Event()
        self._tickets = tickets
        self._attachments = attachments
        self.settings = settings
        self._inbox = _Inbox()
        self._stderr: deque[str] = deque(maxlen=20)
        self._send_lock = threading.Lock()
        self._number = 0
        self._stop_at: float | None = None
        self._warnings: deque[str] = deque(maxlen=5)
        self._refusal: VreplError | None = None
        try:
            begin = launcher or LocalLauncher()
            if settings.machine is None:
                launched = spawner.start(lambda: begin.start(settings.libdir, pass_fds=pass_fds, stream=stream))
            else:
                launched = begin.start(settings.libdir, stream=stream)
        except MoverError as error:
            error.machine = settings.machine
            raise
        except OSError as error:
            raise MoverError(f"a data mover cannot be started: {error}") from error
        self._process, self.port = launched.process, launched.port
        self._reader = threading.Thread(target=self._read, name="mover-reader", daemon=True)
        self._listener = threading.Thread(target=self._listen, name="mover-stderr", daemon=True)
        self._reader.start()
        self._listener.start()
        if settings.machine is not None:
            threading.Thread(target=self._show_life, name="mover-alive", daemon=True).start()
        try:
            self.about = self.request("init", settings=messages.encode(settings.initialise(state_folder())))
        except MoverError as error:
            self.close()
            raise LibraryError(
                f"loading VDDK from {settings.libdir} ended the data mover: {error.message}"
                if settings.libdir is not None
                else f"the data mover ended as it began: {error.message}",
                hint="is the folder one whole VDDK? Another OpenSSL in the process has this effect too"
                if settings.libdir is not None
                else None,
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked for something: one that was stopped refuses."""
        return self._process.poll() is None and self._refusal is None

    def request(self, operation: str, on_progress: Callable[[Json], None] | None = None, **arguments: Any) -> Any:
        """Ask, wait, return the answer.

        Raises what the mover or `on_progress` raised, MoverError if it died, InterruptedRunError if it was stopped
        meanwhile and does not end in time (it is killed then).
        """
        self._number += 1
        number = self._number
        self._inbox.on_progress = on_progress
        self._send({"id": number, "op": operation} | arguments)
        while True:
            reply = self._next_reply()
            if reply is None:
                if self._refusal is not None:
                    raise self._refusal
                if self._stop_at is not None:
                    raise InterruptedRunError("stopped")
                raise self._death(operation)
            if reply["id"] == number:
                break
        self._inbox.on_progress = None
        if self._refusal is not None and "error" in reply:
            raise self._refusal
        if "error" in reply:
            raise error_from_json(reply["error"])
        return reply["ok"]

    def _death(self, operation: str) -> MoverError:
        where = f" on proxy {self.settings.machine}" if self.settings.machine is not None else ""
        death = MoverError(
            f"the data mover{where} (process {self.pid}) died during {operation}: {self._last_words()}",
            hint="the disk is tried again from its last checkpoint on a fresh data mover",
        )
        death.machine = self.settings.machine
        return death

    def stop(self) -> None:
        """End what runs: a transfer checkpoints and closes its disks, or is killed soon."""
        grace = STOP_SECONDS if self.settings.libdir is not None else CLOSING_STOP_SECONDS
        self._stop_at = time.monotonic() + grace
        with suppress(MoverError):
            self._send({"op": "stop"})
        self._inbox.replies.put({"id": 0})  # wakes who waits, so that the time counts

    def give_up_in(self, seconds: float) -> None:
        """The next request must be answered within so many seconds; else the mover is killed and it is interrupted.

        From any thread, also about the request that is under way.
        """
        self._stop_at = time.monotonic() + seconds
        self._inbox.replies.put({"id": 0})  # wakes who waits, so that the time counts

    def set_rate(self, rate: int) -> None:
        """Bytes per second (0: no limit) that may be read, and as many that may be written; takes effect at once."""
        self.set_rates(rate, rate)

    def set_rates(self, read: int, write: int) -> None:
        """Bytes per second, 0: no limit; takes effect at once."""
        with suppress(MoverError):
            self._send({"op": "set_rate", "read": read, "write": write})

    def kill(self) -> None:
        """At once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def end(self) -> None:
        """Let it exit, or kill it; it stays to be closed."""
        with suppress(MoverError):
            self._send({"op": "exit"})
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def close(self) -> None:
        """Let it exit, or kill it. Idempotent."""
        self.end()
        with suppress(OSError):
            self._pipe(self._process.stdin).close()
        self._reader.join()
        self._listener.join()
        for stream in (self._process.stdout, self._process.stderr):
            self._pipe(stream).close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _send(self, message: Mapping[str, Any]) -> None:
        self._trace("to_mover", message)
        try:
            with self._send_lock:
                stream = self._pipe(self._process.stdin)
                stream.write(messages.to_line(message))
                stream.flush()
        except (OSError, ValueError) as error:
            self._inbox.replies.put(None)
            if message["op"] in {"stop", "exit", "set_rate", "ask", "alive", *messages.ASKED}:
                raise MoverError("the data mover is gone") from error

    def _next_reply(self) -> Json | None:
        if self._stop_at is None:
            return self._inbox.replies.get()
        left = self._stop_at - time.monotonic()
        try:
            return self._inbox.replies.get(timeout=max(left, 0))
        except Empty as empty:
            logger.warning("data mover %d did not stop in time and is killed", self.pid)
            self.kill()
            raise self._refusal or InterruptedRunError("stopped") from empty

    def _read(self) -> None:
        """Thread: messages from the mover."""
        stream = self._pipe(self._process.stdout)
        try:
            for line in stream:
                message = messages.from_line(line)
                self._trace("from_mover", message)
                match message.get("event"):
                    case "progress":
                        report = self._inbox.on_progress
                        if report is not None:
                            del message["event"]
                            self._tell(report, message)
                    case "log":
                        if message["kind"] != "log":
                            self._warnings.append(message["text"])
                        logger.log(LEVELS.get(message["kind"], logging.DEBUG), "%s", message["text"])
                    case "ask":
                        self._answer_question(message)
                    case what if what in messages.ASKED:
                        threading.Thread(
                            target=self._give_answer, args=(message,), name=f"mover-{what}", daemon=True
                        ).start()
                    case _:
                        self._inbox.replies.put(message)
        except MoverError as error:
            self._stderr.append(error.message)
            self.kill()
        except Exception as error:  # a view of the progress failed: whoever waits for a reply must not wait for ever
            logger.exception("messages of data mover %d cannot be read any more", self.pid)
            self._stderr.append(f"{type(error).__name__}: {error}")
            self.kill()
        finally:
            self._gone.set()
            self._records.close()
            self._inbox.replies.put(None)

    def _tell(self, report: Callable[[Json], None], progress: Json) -> None:
        """Whoever hears of the progress may refuse that it goes on: then it stops as when the operator asks for it."""
        if self._refusal is not None:
            return
        try:
            report(progress)
        except VreplError as refusal:
            self._refusal = refusal
            self.stop()

    def _trace(self, what: str, message: Mapping[str, Any]) -> None:
        tracing = trace.current()
        if tracing is not None:
            for site in message.get("sites", {}).values():
                tracing.hide(site["password"])
            if message.get("op") == "ticket" and "ok" in message:
                tracing.hide(message["ok"]["session_id"])
            tracing.event(what, {"mover": self.pid, "message": message})

    def _answer_question(self, asked: Json) -> None:
        """What only the control process has; the mover waits for it."""
        answer: Json = {"op": "ask", "id": asked["id"]}
        try:
            answer["ok"] = self._records.answer(asked["question"], asked)
        except VreplError as error:
            answer["error"] = error_to_json(error)
        with suppress(MoverError):
            self._send(answer)

    def _show_life(self) -> None:
        """Thread."""
        while not self._gone.wait(ALIVE_SECONDS):
            with suppress(MoverError):
                self._send({"op": "alive"})

    def _give_answer(self, message: Json) -> None:
        """Thread: what the mover asked for; a ticket goes into its pipe and nowhere else."""
        answer: Json = {"op": message["event"], "id": message["id"]}
        try:
            answer["ok"] = self._answer_to(message["event"], message["request"])
        except VreplError as error:
            answer["error"] = error_to_json(error)
        except Exception as error:  # the mover waits for an answer
            logger.exception("data mover %d gets no answer to %s", self.pid, message["event"])
            answer["error"] = error_to_json(MoverError(f"{type(error).__name__}: {error}"))
        with suppress(MoverError):
            self._send(answer)

    def _answer_to(self, what: str, request: Json) -> Json:
        if what == "ticket":
            return messages.encode(self._tickets(messages.decode(TicketRequest, request)))
        if self._attachments is None:
            raise DiskError("nobody attaches disks here", code=13)
        desk = self._attachments.desk(lambda: self._process.poll() is None)
        if what == "attach":
            return messages.encode(desk.attach(messages.decode(DiskRequest, request)))
        if what == "allocated":
            return messages.encode(desk.allocated(messages.decode(DiskRequest, request)))
        desk.detach(messages.decode(AttachedDisk, request))
        return {}

    def _listen(self) -> None:
        """Thread: whatever the mover and its libraries print."""
        for line in self._pipe(self._process.stderr):
            text = line.decode("utf-8", "replace").rstrip()
            self._stderr.append(text)
            logger.debug("%s", text)

    def _last_words(self) -> str:
        self._process.wait()
        self._listener.join(1.0)
        status = self._process.returncode
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        said = [line for line in (*self._warnings, *list(self._stderr)[-3:]) if line]
        return f"{how}; it last said: {' | '.join(said)}" if said else how

    @staticmethod
    def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
        if stream is None:
            raise AssertionError("the mover was started with pipes")
        return stream
