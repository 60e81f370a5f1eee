"""Many requests in flight on one NFC session: one thread sends, receives, and completes.

What a host sends after it refused a record is known where that was a question: the answer itself, empty. A session
whose reading or writing is refused is broken for good. Memory does not grow with what the host says: data goes straight
to where it was asked for, what was packed goes through one scratch buffer, and everything else has a limit (see
`frames`).
"""

from __future__ import annotations

import os
import select
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

from vrepl.errors import DiskError, TransientDiskError, VreplError
from vrepl.nfc import frames
from vrepl.nfc.channel import ANSWER_SECONDS, Channel
from vrepl.nfc.codes import lost, nonsense
from vrepl.nfc.frames import FrameError, Refusal
from vrepl.nfc.requests import Question, Record, Request

CLOSED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, BrokenPipeError)
"""What sending says once the host has closed the connection, where that is noticed by sending."""
BURST = 32
"""Calls that send before it is looked whether something came, and the other way round."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session takes of its host: `buffers` of `buffer_bytes` each."""

    buffer_bytes: int
    buffers: int

    @property
    def in_flight(self) -> int:
        """Bytes."""
        return self.buffer_bytes * self.buffers


class Session:
    """`submit` and `ask` from any thread; completions come on the session's own."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        """Takes the channel over; starts AIO. Raises DiskError and below."""
        self.limits = limits
        self._channel = channel
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._submitted: deque[Request] = deque()
        self._open = 0
        self._broken: VreplError | None = None
        self._ending = False
        self._asleep = False
        """Whether the thread waits: it changes nothing meanwhile, and must be told of what it could send."""
        # Below: of the thread alone.
        self._waiting: deque[Request] = deque()
        self._flying: dict[int, Request] = {}
        self._refused: dict[int, int] = {}
        """Questions that were refused, by number, whose kind of answer may still come."""
        self._bytes_flying = 0
        self._number = 0
        self._sending: Iterator[Record] | None = None
        """None: the last record has been taken from it."""
        self._following: Record = ()
        self._sender: Request | None = None
        self._polled = 0
        self._pieces: list[memoryview] = []
        """What is left to be sent of a record."""
        self._heard = time.monotonic()
        channel.go_on()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="nfc-session", daemon=True)
        self._thread.start()
        try:
            size, count = limits.buffer_bytes, limits.buffers
            self.ask(Question(frames.OPEN_SESSION, frames.open_session(size, count), "starting an NFC session"))
            self.ask(Question(frames.SOCKET_OPTIONS, frames.SOCKET_OPTIONS_PAYLOAD, "setting an NFC session up"))
            self.ask(Question(frames.RESOURCE_POOL, frames.RESOURCE_POOL_PAYLOAD, "setting an NFC session up"))
        except BaseException:
            self.abandon()
            raise

    @property
    def peer(self) -> str:
        """Host and port."""
        return self._channel.name

    def submit(self, request: Request) -> None:
        """It ends once, perhaps before this returns."""
        with self._lock:
            broken = self._broken
            if broken is None:
                self._open += 1
                self._submitted.append(request)
                if self._asleep and not self._waiting and self._fits(request):
                    self._ring()  # else the thread looks by itself, at once or after the next answer
        if broken is not None:
            request.end(broken)

    def ask(self, question: Question) -> Question:
        """Submit it and wait. Raises what it ended with."""
        answers: SimpleQueue[VreplError | None] = SimpleQueue()
        question.done = answers.put
        self.submit(question)
        error = answers.get()
        if error is not None:
            raise error
        return question

    def wait(self) -> None:
        """Until nothing is in flight."""
        with self._idle:
            self._idle.wait_for(lambda: self._open == 0)

    def end(self) -> None:
        """Close the session in order. Raises DiskError where the host does not confirm it."""
        try:
            self.ask(Question(frames.CLOSE_SESSION, frames.CLOSE_SESSION_PAYLOAD, "ending an NFC session"))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the connection as it is. Idempotent."""
        with self._lock:
            self._ending = True
            self._ring()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _ring(self) -> None:
        """Wake the thread. The caller holds the lock: a bell that is gone may be another file's number by now."""
        if self._bell >= 0:
            with suppress(BlockingIOError):
                os.eventfd_write(self._bell, 1)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: VreplError
        try:
            self._work()
            error = TransientDiskError(f"the session with {self.peer} is closed", code=14011)
        except (DiskError, VreplError) as caught:
            error = caught
        except FrameError as caught:
            error = nonsense(self.peer, caught)
        except CLOSED:
            error = lost(self.peer, "was closed by the host" + (" in mid-answer" if self._flying else ""))
        except OSError as caught:
            error = lost(self.peer, f"was lost: {caught.strerror or caught}")
        except Exception as caught:  # a mistake in vrepl must end every request that is waited for
            error = DiskError(f"{type(caught).__name__}: {caught}", code=1, hint="please report this")
        self._channel.close()
        self._break(error)
        with self._lock:
            bell, self._bell = self._bell, -1
            os.close(bell)

    def _break(self, error: VreplError) -> None:
        with self._lock:
            self._broken = error
            left = [*self._flying.values(), *self._waiting, *self._submitted]
            self._submitted.clear()
        self._flying.clear()
        self._waiting.clear()
        for request in left:
            self._end(request, error)

    def _end(self, request: Request, error: VreplError | None) -> None:
        request.end(error)
        with self._idle:
            self._open -= 1
            if self._open == 0:
                self._idle.notify_all()

    def _work(self) -> None:
        receiving = self._receive()
        place = next(receiving)
        while not self._ending:
            if self._submitted:
                with self._lock:
                    self._waiting.extend(self._submitted)
                    self._submitted.clear()
            sent = received = 0
            for _ in range(BURST):
                if not self._send_some():
                    break
                sent += 1
            full = bool(self._pieces)
            drained = False
            for _ in range(BURST):
                count = self._channel.try_receive(place)
                if count == 0:
                    raise lost(self.peer, "was closed by the host" + (" in mid-answer" if self._flying else ""))
                drained = count is None or count < len(place)
                received += count or 0
                if count is not None:
                    place = place[count:] if drained else next(receiving)
                if drained:
                    break
            if sent or received:
                self._heard = time.monotonic()
            if drained and (full or not self._may_send):
                self._sleep()

    def _sleep(self) -> None:
        """Until the host has said something, can be told more, or there is something new to do."""
        with self._lock:
            if self._submitted:
                return
            self._asleep = True
        try:
            self._poll_once()
        finally:
            self._asleep = False

    def _poll_once(self) -> None:
        wanted = select.POLLIN | (select.POLLOUT if self._may_send else 0)
        if wanted != self._polled:
            self._poll.register(self._channel.fileno(), wanted)
            self._polled = wanted
        patience = None
        if self._flying:
            patience = (self._heard + ANSWER_SECONDS - time.monotonic()) * 1000
            if patience <= 0:
                raise lost(self.peer, f"is silent for {ANSWER_SECONDS:.0f} s, with answers due")
        ready = self._poll.poll(patience)
        if patience is None:
            self._heard = time.monotonic()
        if any(descriptor == self._bell for descriptor, _ in ready):
            with suppress(BlockingIOError):
                os.eventfd_read(self._bell)

    @property
    def _may_send(self) -> bool:
        """Whether there is something that the host has room for: its buffers are counted."""
        return bool(self._pieces or self._sending or (self._waiting and self._fits(self._waiting[0])))

    def _fits(self, request: Request) -> bool:
        return not self._bytes_flying or self._bytes_flying + request.cost <= self.limits.in_flight

    def _send_some(self) -> bool:
        pieces = self._pieces
        if not pieces and not self._next_record():
            return False
        left = count = self._channel.try_send(pieces)
        while left:
            length = len(pieces[0])
            if left < length:
                pieces[0] = pieces[0][left:]
                break
            del pieces[0]
            left -= length
        return count > 0

    def _next_record(self) -> bool:
        if self._sending is None:
            if not self._waiting or not self._fits(self._waiting[0]):
                return False
            request = self._waiting.popleft()
            number = self._number
            self._number = (self._number + 1) & 0xFFFFFFFF
            self._flying[number] = request
            self._bytes_flying += request.cost
            self._sending, self._sender = request.outgoing(number), request
            self._following = next(self._sending)
        self._pieces += map(memoryview, self._following)
        self._following = next(self._sending, ())
        if not self._following:
            self._sending = None
        return True

    def _receive(self) -> Iterator[memoryview]:
        """The places that what comes goes to, one after the other."""
        head = memoryview(bytearray(frames.HEADER.size))
        body = memoryview(bytearray(frames.LARGEST_PAYLOAD))
        while True:
            yield head
            header = frames.decode_header(head)
            payload = body[: header.size]
            if header.size:
                yield payload
            request = self._flying.get(header.number)
            if self._refused.pop(header.number, None) == header.kind:
                continue
            if request is None:
                raise FrameError(f"a record of type {header.kind} answers request {header.number}, which is not open")
            if header.kind == frames.ERROR:
                code, length = frames.decode_refusal(payload)
                text = bytearray(length)
                if length:
                    yield memoryview(text)
                error = request.refusal(Refusal(code, text.decode("utf-8", "replace")))
                if not isinstance(request, Question):
                    raise error
                self._refused[header.number] = request.kind
                del self._flying[header.number]
                self._end(request, error)
                continue
            if header.kind != request.kind:
                raise FrameError(f"a request of type {request.kind} is answered with type {header.kind}")
            try:
                yield from request.incoming(payload)
            except Refusal as refusal:
                raise request.refusal(refusal) from refusal
            if request.finished:
                if request is self._sender and (self._pieces or self._sending):
                    raise FrameError(f"request {header.number} is answered before it was sent")
                del self._flying[header.number]
                self._bytes_flying -= request.cost
                self._end(request, None)
