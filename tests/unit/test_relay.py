"""What the relay makes of its TCP connection."""

from __future__ import annotations

import socket
import threading

import pytest

from vrepl.proxy import relay
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


@pytest.mark.parametrize(("long_way", "wide"), [(0, True), (10**9, False)])
def test_the_window_of_a_long_way_holds_what_a_mover_has_in_flight_where_this_user_may(
    monkeypatch: pytest.MonkeyPatch, long_way: int, wide: bool
) -> None:
    monkeypatch.setattr(relay, "LONG_WAY", long_way)
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            with socket.socket() as trial:
                trial.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, WINDOW)
        except PermissionError:
            pytest.skip("this user may not")
        there = StreamEnd("", "", "", "", address="127.0.0.1", port=server.getsockname()[1], encrypted=False)
        connected, _ = _connect(there, None)
    with connected:
        sizes = [connected.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    assert (min(sizes) >= WINDOW) == wide


def congestion_of(connection: socket.socket) -> str:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
