"""`vrepl lab set`: guests, shares and the nasty settings, in words."""

from __future__ import annotations

import pytest

from vrepl_lab.errors import LabError
from vrepl_lab.nasty import KIND, NASTY
from vrepl_lab.settings import SETTINGS, parse_assignments

SITES = ("prod", "dr")


def test_a_guest_rule_in_words() -> None:
    text = "prod.guest=web-*,boots=no,boot_ms=20,ports=22+443,shutdown=hang,login=root:a=b"
    changes = parse_assignments([text, "guest=*,ports=none"], SITES)
    assert changes["prod"].guests == [
        {"vm": "web-*", "boots": False, "boot_ms": 20, "ports": [22, 443], "shutdown": "hang", "login": "root:a=b"},
        {"vm": "*", "ports": []},
    ]
    assert changes["dr"].guests == [{"vm": "*", "ports": []}]
    cleared = parse_assignments(["guest=*,boots=no", "guests=none", "guest=db-01,boots=yes"], SITES)["dr"]
    assert cleared.clear_guests
    assert cleared.guests == [{"vm": "db-01", "boots": True}]


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("guest=", "PATTERN"),
        ("guest=web-01,boot=no", "no key 'boot'"),
        ("guest=web-01,boots=maybe", "yes or no"),
        ("guest=web-01,ports=http", "not a number"),
        ("guest=web-01,shutdown=never", "ok, hang, refused"),
        ("guests=all", "guests=none"),
        ("nasty=perhaps", "yes or no"),
        ("cbt_miss=1.5", "from 0 to 1"),
        ("quiesce_without_tools=maybe", "ignored or refused"),
    ],
)
def test_what_is_wrong_is_said(assignment: str, words: str) -> None:
    with pytest.raises(LabError, match=words):
        parse_assignments([assignment], SITES)


def test_nasty_sets_them_all_and_takes_them_back() -> None:
    assert NASTY.keys() == KIND.keys() <= SETTINGS.keys()
    on = parse_assignments(["dr.nasty=on"], SITES)
    assert on["prod"].simulator == {}
    assert on["dr"].simulator["cbt_false"] == 0.05
    assert on["dr"].simulator["hardware_max"] == {"*": 19}
    off = parse_assignments(["nasty=off"], SITES)["dr"].simulator
    assert (off["cbt_false"], off["hardware_max"], off["cbt_per_disk"]) == (0, {}, False)
