"""Whether change tracking goes on from an earlier position: one rule, for restore points and for attempts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vrepl.model import TrackingPosition
from vrepl.planner.tracking import BreakKind, tracking_break, tracking_id

THEN = TrackingPosition("52 aa/5", "uuid-1", "[ds] web/web.vmdk", 1 << 30)
NOW = replace(THEN, change_id="52 aa/9")


def test_the_same_tracking_of_the_same_disk_goes_on() -> None:
    assert tracking_break(THEN, NOW) is None


@pytest.mark.parametrize(
    ("then", "now", "kind", "said"),
    [
        ({}, {"disk_uuid": "uuid-2"}, BreakKind.OTHER_DISK, "another disk stands in its place"),
        ({"change_id": None}, {}, BreakKind.NONE_THEN, "the last restore point has no change ID"),
        ({}, {"change_id": None}, BreakKind.NONE_NOW, "CBT gives no change ID"),
        ({}, {"change_id": "52 bb/1"}, BreakKind.RESET, "CBT was reset since the last restore point"),
        ({}, {"capacity": 2 << 30}, BreakKind.RESIZED, "from 1073741824 to 2147483648 bytes"),
        ({}, {"base_path": "[ds2] web/web.vmdk"}, BreakKind.MOVED, "from [ds] web/web.vmdk to [ds2] web/web.vmdk"),
    ],
)
def test_what_ends_it_is_named(then: dict[str, Any], now: dict[str, Any], kind: BreakKind, said: str) -> None:
    found = tracking_break(replace(THEN, **then), replace(NOW, **now))
    assert found is not None
    assert found.kind is kind
    assert said in found.reason


def test_the_words_name_what_the_position_belongs_to() -> None:
    found = tracking_break(THEN, replace(NOW, change_id="52 bb/1"), what="the failover")
    assert found is not None
    assert found.reason == "CBT was reset since the failover"


def test_a_change_id_is_a_tracking_and_a_position_in_it() -> None:
    assert tracking_id("52 aa/5") == tracking_id("52 aa/6") != tracking_id("52 ab/5")
