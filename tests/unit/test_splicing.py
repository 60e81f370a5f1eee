"""Memory goes over a stream whole and in order, without being copied where the system can do that."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from vrepl.stream.splicing import LEAST_BYTES, PageSender, _Pipe
from vrepl.stream.wire import receive_into
from vrepl.transport.buffers import LARGEST, Buffer

SIZES = (512, LEAST_BYTES - 1, LEAST_BYTES, LEAST_BYTES + 512, 1024 * 1024, LARGEST)
Pair = tuple[socket.socket, socket.socket]


def of_this_machine() -> Pair:
    return socket.socketpair()


def of_a_network() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        return near, far


@contextmanager
def received(connection: socket.socket, length: int) -> Iterator[bytearray]:
    """What the other end has read by the end of the block."""
    found = bytearray(length)
    thread = threading.Thread(target=receive_into, args=(connection, memoryview(found)))
    thread.start()
    yield found
    thread.join()


@pytest.fixture(params=[of_this_machine, of_a_network])
def streams(request: pytest.FixtureRequest) -> Iterator[Pair]:
    near, far = request.param()
    with near, far:
        yield near, far


def filled(length: int) -> Buffer:
    buffer = Buffer(LARGEST, huge_page=True)
    buffer.view[:length] = random.Random(length).randbytes(length)
    return buffer


def test_all_bytes_arrive_in_order(streams: Pair) -> None:
    near, far = streams
    buffers = [(filled(length), length) for length in SIZES]
    with received(far, sum(SIZES)) as found, closing(PageSender(near)) as sender:
        for buffer, length in buffers:
            sender.send(buffer.view[:length])
    assert found == b"".join(buffer.view[:length] for buffer, length in buffers)


def test_large_views_are_not_copied_on_this_system(streams: Pair) -> None:
    """Linux has spliced to sockets of both kinds for longer than it has run any Python that vrepl supports."""
    near, far = streams
    with received(far, LARGEST), closing(PageSender(near)) as sender:
        sender.send(filled(LARGEST).view)
        assert not sender.copies


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("pieces_before", [0, 1, 5])
@pytest.mark.parametrize("step", ["refer", "hand_on"])
def test_where_the_system_refuses_the_rest_is_copied(
    streams: Pair, monkeypatch: pytest.MonkeyPatch, step: str, pieces_before: int, refusal: int
) -> None:
    near, far = streams
    calls: list[int] = []
    real: Callable[..., int] = getattr(_Pipe, step)

    def refuse(self: _Pipe, *arguments: object) -> int:
        calls.append(1)
        if len(calls) > pieces_before:
            raise OSError(refusal, os.strerror(refusal))
        if step == "hand_on":
            return real(self, arguments[0], 4096)
        return real(self, arguments[0], 3 * 4096)

    monkeypatch.setattr(_Pipe, step, refuse)
    buffer = filled(LARGEST)
    with received(far, LARGEST) as found, closing(PageSender(near)) as sender:
        sender.send(buffer.view)
        assert sender.copies
    assert found == buffer.view


def test_without_descriptors_everything_is_copied(streams: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = streams

    def no_pipe() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe", no_pipe)
    buffer = filled(LARGEST)
    with received(far, LARGEST) as found, closing(PageSender(near)) as sender:
        assert sender.copies
        sender.send(buffer.view)
    assert found == buffer.view


def test_a_broken_stream_is_an_error_and_leaves_no_descriptor(streams: Pair) -> None:
    near, far = streams
    open_before = len(os.listdir("/proc/self/fd"))
    far.close()
    with closing(PageSender(near)) as sender, pytest.raises(OSError, match=r"pipe|reset"):  # noqa: PT012
        for _ in range(64):
            sender.send(filled(LARGEST).view)
    assert len(os.listdir("/proc/self/fd")) == open_before - 1
