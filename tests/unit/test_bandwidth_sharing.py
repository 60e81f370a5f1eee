"""A bandwidth limit: the token bucket of one mover, and how a run divides it among its movers."""

from __future__ import annotations

import datetime as dt
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrepl.model import Bandwidth, BandwidthWindow
from vrepl.transport.rates import SharedRate, share, tightest
from vrepl.transport.throttle import LEAST_BURST, Throttle

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        ([None], [100]),
        ([None, None], [50, 50]),
        ([50.0, 50.0], [50, 50]),
        ([8.0, 60.0], [10, 90]),
        ([8.0, 16.0, 70.0], [10, 20, 70]),
        ([0.0, 90.0], [2, 97]),
        ([90.0, 90.0, None], [33, 33, 33]),
    ],
)
def test_shares_follow_use_and_the_rest_goes_to_the_others(usages: list[float | None], expected: list[int]) -> None:
    assert share(100, usages) == expected


@given(st.integers(1, 1 << 40), st.lists(st.one_of(st.none(), st.floats(0, 1e12)), min_size=1, max_size=20))
def test_shares_never_exceed_the_limit_and_starve_nobody(total: int, usages: list[float | None]) -> None:
    shares = share(total, usages)
    assert all(value >= 1 for value in shares)
    assert sum(shares) <= total + len(shares)
    assert sum(shares) >= total - len(shares), "nothing of the limit is left unused"


def test_a_run_divides_its_limit_as_transfers_come_go_and_the_limit_changes() -> None:
    limit: list[int | None] = [100]
    rates: dict[str, int] = {}
    shared = SharedRate(lambda: limit[0])
    with shared.transfer(lambda rate: rates.__setitem__("a", rate)):
        assert rates == {"a": 100}
        with shared.transfer(lambda rate: rates.__setitem__("b", rate)):
            assert rates == {"a": 50, "b": 50}
            limit[0] = 20
            shared.review()
            assert rates == {"a": 10, "b": 10}
            limit[0] = None
            shared.review()
            assert rates == {"a": 0, "b": 0}
            limit[0] = 60
        assert rates["a"] == 60
    shared.end()


def test_the_bucket_lets_through_what_the_rate_allows() -> None:
    clock = Clock()
    throttle = Throttle(10 * MIB, clock)
    passed = 0
    for _ in range(100):
        clock.now += 0.1
        while throttle.ready:
            throttle.take(MIB)
            passed += MIB
    assert abs(passed - 100 * MIB) <= LEAST_BURST


def test_a_pause_earns_no_more_than_a_burst() -> None:
    clock = Clock()
    throttle = Throttle(10 * MIB, clock)
    clock.now += 3600
    passed = 0
    while throttle.ready:
        throttle.take(MIB)
        passed += 1
    assert passed <= 2


@pytest.mark.parametrize("release", ["open", "faster"])
def test_who_waits_is_let_go_when_the_rate_changes(release: str) -> None:
    throttle = Throttle(1)
    throttle.take(1)
    thread = threading.Thread(target=throttle.take, args=(MIB,))
    thread.start()
    if release == "open":
        throttle.open()
    else:
        throttle.set_rate(0)
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("moment", "expected"),
    [(dt.time(12), 20), (dt.time(23), 50), (dt.time(5), 50), (dt.time(6), 20)],
)
def test_the_tightest_of_job_and_sites_counts(moment: dt.time, expected: int) -> None:
    job = Bandwidth(50)
    source = Bandwidth(20, (BandwidthWindow(dt.time(22), dt.time(6), None),))
    assert tightest((job, source, Bandwidth()), moment) == expected
    assert tightest((Bandwidth(), Bandwidth()), moment) is None


def test_a_time_window_takes_effect_while_transfers_run() -> None:
    moment = dt.time(21, 59, 59)
    night = Bandwidth(100, (BandwidthWindow(dt.time(22), dt.time(6), None),))
    rates: list[int] = []
    shared = SharedRate(lambda: tightest((night,), moment))
    with shared.transfer(rates.append):
        moment = dt.time(22)
        shared.review()
        moment = dt.time(6)
        shared.review()
    shared.end()
    assert rates == [100, 0, 100]
