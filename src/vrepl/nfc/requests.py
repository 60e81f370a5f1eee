"""What a session has asked its host and waits for: each request knows what it sends, and what may come for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator

from vrepl.errors import DiskError, VreplError
from vrepl.nfc import frames, packing
from vrepl.nfc.codes import refused
from vrepl.nfc.frames import Fragment, FrameError, Refusal
from vrepl.transport.disk import Completion

Record = tuple[bytes | memoryview, ...]
"""One record's bytes, in pieces that follow one another."""
Answer = Iterator[memoryview]
"""Gives the places that come next off the wire, one after the other; when it ends, so does one record."""


class Request(ABC):
    """One number on the wire. `finished` once everything that was to come has come."""

    kind: int
    cost = 0
    """Bytes that it keeps in flight."""

    def __init__(self) -> None:
        self.finished = False

    @abstractmethod
    def outgoing(self, number: int) -> Iterator[Record]:
        """What is sent, record by record."""

    @abstractmethod
    def incoming(self, payload: memoryview) -> Answer:
        """What trails a record of this request's kind with that payload. Raises FrameError, Refusal."""

    @abstractmethod
    def end(self, error: VreplError | None) -> None:
        """Called once."""

    @abstractmethod
    def refusal(self, refusal: Refusal) -> DiskError:
        """What it becomes where the host refuses it."""


class Question(Request):
    """One record, answered by one; what trails the answer is as long as its payload says."""

    def __init__(
        self,
        kind: int,
        payload: bytes,
        what: str,
        *,
        trailer: bytes = b"",
        trailing: Callable[[memoryview], int] = lambda payload: 0,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.what = what
        self._payload = payload
        self._trailer = trailer
        self._trailing = trailing
        self.answer = b""
        self.data = bytearray()
        self.done: Completion = lambda error: None

    def outgoing(self, number: int) -> Iterator[Record]:
        yield (frames.encode_record(self.kind, number, self._payload) + self._trailer,)

    def incoming(self, payload: memoryview) -> Answer:
        self.answer = bytes(payload)
        self.data = bytearray(self._trailing(payload))
        if self.data:
            yield memoryview(self.data)
        self.finished = True

    def end(self, error: VreplError | None) -> None:
        self.done(error)

    def refusal(self, refusal: Refusal) -> DiskError:
        return refused(self.what, refusal)


class Read(Request):
    """Up to 1 MiB, which comes in fragments in any order."""

    kind = frames.IO

    def __init__(
        self, handle: int, offset: int, view: memoryview, compression: int, scratch: bytearray, done: Completion
    ) -> None:
        super().__init__()
        self.cost = len(view)
        self._handle = handle
        self._offset = offset
        self._view = view
        self._compression = compression
        self._scratch = scratch
        self._done = done
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._missing = len(view)

    def outgoing(self, number: int) -> Iterator[Record]:
        payload = frames.read_request(self._handle, self._offset, len(self._view), self._compression)
        yield (frames.encode_record(self.kind, number, payload),)

    def incoming(self, payload: memoryview) -> Answer:
        fragment = frames.decode_fragment(payload)
        if fragment.status:
            raise Refusal(fragment.status, "")
        frames.check_fragment(fragment, self._offset, len(self._view))
        self._claim(fragment)
        place = self._view[fragment.start : fragment.start + fragment.length]
        if fragment.compression == frames.STORED:
            yield place
        else:
            if fragment.compression != self._compression:
                raise FrameError(f"compression {fragment.compression} was not asked for")
            packed = memoryview(self._scratch)[: fragment.wire]
            yield packed
            packing.unpack(fragment.compression, packed, place)
        self._missing -= fragment.length
        self.finished = self._missing == 0

    def _claim(self, fragment: Fragment) -> None:
        """Raises FrameError where a part of it came already."""
        at = bisect_left(self._starts, fragment.start)
        end = fragment.start + fragment.length
        before = at > 0 and self._ends[at - 1] > fragment.start
        after = at < len(self._starts) and self._starts[at] < end
        if before or after:
            raise FrameError(f"bytes {fragment.start} to {end} of a read came twice")
        self._starts.insert(at, fragment.start)
        self._ends.insert(at, end)

    def end(self, error: VreplError | None) -> None:
        self._done(error)

    def refusal(self, refusal: Refusal) -> DiskError:
        return refused("reading", refusal, offset=self._offset)


class Write(Request):
    """Sent in fragments of the session's buffer size, all with one number, and acknowledged once."""

    kind = frames.IO

    def __init__(self, handle: int, offset: int, view: memoryview, piece: int, done: Completion) -> None:
        super().__init__()
        self.cost = len(view)
        self._handle = handle
        self._offset = offset
        self._view = view
        self._piece = piece
        self._done = done

    def outgoing(self, number: int) -> Iterator[Record]:
        total = len(self._view)
        for start in range(0, total, self._piece):
            part = self._view[start : start + self._piece]
            payload = frames.write_fragment(self._handle, self._offset, total, start, len(part))
            yield frames.encode_record(self.kind, number, payload), part

    def incoming(self, payload: memoryview) -> Answer:
        fragment = frames.decode_fragment(payload)
        if fragment.status:
            raise Refusal(fragment.status, "")
        if fragment.offset != self._offset:
            raise FrameError(f"a write at {self._offset} is answered with one at {fragment.offset}")
        self.finished = True
        yield from ()

    def end(self, error: VreplError | None) -> None:
        self._done(error)

    def refusal(self, refusal: Refusal) -> DiskError:
        return refused("writing", refusal, offset=self._offset)
