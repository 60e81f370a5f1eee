"""A machine behind ssh is asked once for what does not change, however many threads want to know."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from vrepl.errors import MoverError
from vrepl.proxy.machine import FarMachine, RememberedMachine
from vrepl.proxy.ssh import SshMachine

BIOS = uuid.UUID("4210f9a5-1b2c-3d4e-5f60-718293a4b5c6")
ASKED: list[bytes] = []


@dataclass(frozen=True, slots=True)
class Answering(SshMachine):
    """Answers without ssh."""

    answer: bytes = b""

    def run(self, remote: str, given: bytes = b"", *, seconds: float = 60.0) -> bytes:
        ASKED.append(given)
        return self.answer


def machine(answer: object) -> RememberedMachine:
    ASKED.clear()
    return RememberedMachine(FarMachine(Answering("far", "far", answer=json.dumps(answer).encode()), Path("/root")))


def test_all_that_stays_is_asked_in_one_connection() -> None:
    far = machine({"product_uuid": str(BIOS), "luns": ["naa.6"], "no_devices": None, "closed_ports": {"esx-2": "no"}})
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: far.product_uuid(), range(8))) == {BIOS}
    assert far.visible_luns() == {"naa.6"}
    assert far.no_devices() is None
    assert [json.loads(asked) for asked in ASKED] == [{"sysroot": "/root"}]
    assert far.closed_ports(["esx-1", "esx-2"], 902) == {"esx-2": "no"}
    assert far.closed_ports(["esx-1"], 902) == {"esx-2": "no"}
    assert len(ASKED) == 3, "ports are tried each time"


def test_what_is_no_answer_is_told() -> None:
    with pytest.raises(MoverError, match="proxy far answered with what is no answer"):
        machine(["what"]).product_uuid()
