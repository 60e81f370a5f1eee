"""What the relay makes of its TCP connection."""

from __future__ import annotations

import socket
import threading

import pytest

from vrepl.proxy.relay import WINDOW, _connect
from vrepl.stream.end import StreamEnd
from vrepl.stream.wire import SO_SNDBUFFORCE


@pytest.mark.parametrize(("wanted", "taken"), [("reno", "reno"), ("none-such", None), ("", None)])
def test_congestion_control_is_chosen_at_both_ends_where_the_system_lets(wanted: str, taken: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        usual = congestion_of(server)
        accepted: list[socket.socket] = []
        here = StreamEnd("", "", "", "", congestion=wanted, encrypted=False)
        there = StreamEnd("", "", "", "", address="127.0.0.1", port=port, congestion=wanted, encrypted=False)
        thread = threading.Thread(target=lambda: accepted.append(_connect(here, server)[0]))
        thread.start()
        connected, _ = _connect(there, None)
        thread.join()
    with connected, accepted[0]:
        assert [congestion_of(each) for each in (connected, accepted[0])] == [taken or usual] * 2


def test_the_window_holds_what_a_mover_has_on_its_way_where_this_user_may() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            server.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, WINDOW)
        except PermissionError:
            pytest.skip("this user may not")
        there = StreamEnd("", "", "", "", address="127.0.0.1", port=server.getsockname()[1], encrypted=False)
        connected, _ = _connect(there, None)
    with connected:
        sizes = [connected.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    assert min(sizes) >= WINDOW


def congestion_of(connection: socket.socket) -> str:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
