"""Whatever goes wrong at one end of a stream, both ends return with an error, and no buffer is used again."""

from __future__ import annotations

import errno
import random
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.memory_disk import MemoryDisk, MemoryHandle, full_copy_of
from tests.support.memory_records import MemoryDigests, MemoryLog
from vrepl.errors import MoverError, VreplError
from vrepl.stream import serve
from vrepl.stream.compression import Compressor
from vrepl.stream.remote import RemoteDisk
from vrepl.stream.serve import DiskServer, serve_disk
from vrepl.stream.splicing import _Pipe
from vrepl.stream.wire import HEADER, Header, Kind
from vrepl.transport.buffers import LARGEST, MIB, POOL, Buffer
from vrepl.transport.decorators import LateDisk, PassingDisk
from vrepl.transport.transfer import copy_disk

HANGS = 60
"""Seconds after which a thread is taken to hang: far more than anything here takes."""
CAPACITY = 24 * MIB


class Ends:
    """A source's end and a served target, each in a thread; what they raised."""

    def __init__(self, disk: PassingDisk | MemoryHandle | None = None) -> None:
        self.near, self.far = socket.socketpair()
        self.target = MemoryDisk(CAPACITY)
        self.disk = disk or MemoryHandle(self.target, writable=True)
        self.log = MemoryLog()
        self.source = MemoryDisk(CAPACITY)
        self.source.write(0, random.Random(5).randbytes(CAPACITY))
        self.served: list[BaseException] = []
        self.copied: list[VreplError | None] = []

    def run(self) -> None:
        """Copy until one end or both have failed. Fails if an end hangs."""
        threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._copy)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS)
        assert not [thread for thread in threads if thread.is_alive()], (self.served, self.copied)
        self.near.close()
        self.far.close()

    def _serve(self) -> None:
        try:
            serve_disk(lambda: self.disk, self.far)
        except BaseException as error:
            self.served.append(error)

    def _copy(self) -> None:
        try:
            remote = RemoteDisk(self.near)
            try:
                copy_disk(
                    full_copy_of(CAPACITY),
                    MemoryHandle(self.source, block=LARGEST),
                    remote,
                    MemoryDigests({}),
                    self.log,
                )
            finally:
                remote.close()
        except VreplError as error:
            self.copied.append(error)

    @property
    def error(self) -> VreplError:
        (error,) = self.copied
        assert error is not None
        return error


def at_call(number: int, error: BaseException, real: Callable[..., Any]) -> Callable[..., Any]:
    """The real function, but for the call of this number (from 1), which raises."""
    calls: list[None] = []

    def called(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            raise error
        return real(*arguments)

    return called


@pytest.mark.parametrize("step", ["refer", "hand_on"])
def test_a_send_that_fails_at_one_end_only_ends_both(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    error = OSError(errno.EIO, "an error that is not the other end's death")
    monkeypatch.setattr(_Pipe, step, at_call(6, error, getattr(_Pipe, step)))
    ends = Ends()
    ends.run()
    assert "not the other end's death" in ends.error.message
    assert isinstance(ends.served[0], MoverError)


@pytest.mark.parametrize("step", ["refer", "hand_on"])
def test_a_system_short_of_memory_copies_instead(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(_Pipe, step, at_call(6, OSError(errno.ENOMEM, "no memory"), getattr(_Pipe, step)))
    ends = Ends()
    ends.run()
    assert (ends.served, ends.copied) == ([], [])
    assert ends.target.content() == ends.source.content()


def test_a_mistake_while_sending_ends_the_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compressor, "pack", at_call(3, MemoryError("no memory"), Compressor.pack))
    ends = Ends()
    ends.run()
    assert "MemoryError" in ends.error.message


def test_a_server_that_fails_without_dying_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiskServer, "_write", at_call(3, OSError(errno.ENOMEM, "no memory"), DiskServer._write))
    ends = Ends()
    ends.run()
    assert isinstance(ends.error, MoverError)
    assert isinstance(ends.served[0], OSError)


def test_a_server_that_cannot_begin_closes_its_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMemory:
        def take(self) -> None:
            raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(serve, "POOL", NoMemory())
    ends = Ends()
    ends.run()
    assert isinstance(ends.error, MoverError)
    assert isinstance(ends.disk, MemoryHandle)
    assert ends.disk.closed


def test_a_disk_that_raises_when_it_is_given_work_ends_the_stream() -> None:
    class Raising(PassingDisk):
        def submit_write(self, *arguments: object) -> None:
            raise RuntimeError("a disk never does this")

    ends = Ends(Raising(MemoryHandle(MemoryDisk(CAPACITY), writable=True)))
    ends.run()
    assert isinstance(ends.error, MoverError)
    assert isinstance(ends.served[0], RuntimeError)


def test_an_answer_that_cannot_be_sent_is_not_waited_for() -> None:
    ends = Ends()

    class ShortOfBuffers(socket.socket):
        sends = 0

        def send(self, *arguments: Any) -> int:
            self.sends += 1
            if self.sends == 3:
                raise OSError(errno.ENOBUFS, "no buffers")
            return super().send(*arguments)

    ends.far = ShortOfBuffers(fileno=ends.far.detach())
    ends.run()
    assert isinstance(ends.error, MoverError)


def test_after_a_loss_no_buffer_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket may refer to their pages still, and the other end go on reading them."""
    taken: list[int] = []
    given: list[int] = []
    take, give = POOL.take, POOL.give

    def noted_take() -> Buffer:
        taken.append(1)
        return take()

    def noted_give(buffer: Buffer) -> None:
        given.append(buffer.address)
        give(buffer)

    monkeypatch.setattr(POOL, "take", noted_take)
    monkeypatch.setattr(POOL, "give", noted_give)
    monkeypatch.setattr(_Pipe, "hand_on", at_call(6, OSError(errno.EIO, "lost"), _Pipe.hand_on))
    ends = Ends(LateDisk(MemoryHandle(MemoryDisk(CAPACITY), writable=True), 0.01))
    ends.run()
    assert ends.error
    of_the_server = serve.ARRIVED // MIB
    assert len(taken) > of_the_server
    assert len(given) == of_the_server, "only what the server had for itself goes back"


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.ZEROS, Kind.READ])
def test_more_than_a_buffer_at_once_is_refused(kind: Kind) -> None:
    ends = Ends()
    thread = threading.Thread(target=ends._serve, daemon=True)
    thread.start()
    ends.near.recv(4096)
    ends.near.sendall(HEADER.pack(*Header(kind, 0, 1, 0, LARGEST + 512, 0)))
    thread.join(HANGS)
    assert not thread.is_alive()
    assert "the other data mover wants to" in str(ends.served[0])
    ends.near.close()
    ends.far.close()


def test_an_answer_of_another_length_is_no_answer() -> None:
    ends = Ends()
    buffer = POOL.take()
    answers: list[VreplError | None] = []
    done = threading.Event()

    def answer() -> None:
        hello = b'{"capacity": 1048576, "mode": "nbdssl", "block": 1048576}'
        ends.far.sendall(HEADER.pack(*Header(Kind.HELLO, 0, 0, 0, 0, len(hello))) + hello)
        asked = Header(*HEADER.unpack(ends.far.recv(HEADER.size, socket.MSG_WAITALL)))
        ends.far.sendall(HEADER.pack(*asked._replace(kind=Kind.DONE, payload=512)) + bytes(512))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    remote = RemoteDisk(ends.near)

    def completed(error: VreplError | None) -> None:
        answers.append(error)
        done.set()

    remote.submit_read(0, buffer, 0, 4096, completed)
    assert done.wait(HANGS)
    assert "512 bytes instead of 4096" in str(answers[0])
    with pytest.raises(MoverError):
        remote.close()
    thread.join()
    ends.near.close()
    ends.far.close()
