"""Data movers with vrepl's own engine: what they load, what they are told, and what nobody else gets to see."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.memory_disk import MemoryDisk
from tests.support.nfc_host import PATH, NfcHost, nfc_host
from vrepl import trace
from vrepl.errors import DiskError, MoverError
from vrepl.extents import GRAIN, Extent
from vrepl.model import TransferKind, TransportMode
from vrepl.movers.pool import VddkMovers
from vrepl.movers.process import MoverProcess, Spawner
from vrepl.movers.settings import MoverSettings
from vrepl.ports import DigestFiles, DiskAddress, NfcTicket, SiteConnection, TicketRequest, TransferOrder
from vrepl.transport.buffers import MIB

CAPACITY = 6 * MIB
OWN = MoverSettings(None, engine="vrepl.nfc.engine:start", readback="all")
PASSWORD = "a-password-that-stands-out"


class Pair:
    """Two hosts with a disk each, and movers that reach both."""

    def __init__(self, source: NfcHost, target: NfcHost) -> None:
        self.hosts = {"prod": source, "dr": target}
        self.tickets: list[NfcTicket] = []
        self.movers = VddkMovers(self.connection, lambda site: OWN, tickets=self.ticket)

    @staticmethod
    def connection(site: str) -> SiteConnection:
        return SiteConnection(f"vcenter-{site}", 443, 902, "user", PASSWORD, "")

    def ticket(self, request: TicketRequest) -> NfcTicket:
        self.tickets.append(self.hosts[request.site].ticket(request))
        return self.tickets[-1]

    @staticmethod
    def address(site: str) -> DiskAddress:
        return DiskAddress(site, "vm-1", None, PATH, CAPACITY, (TransportMode.NBDSSL,), "vm", "disk")

    def order(self, log: Path) -> TransferOrder:
        return TransferOrder(
            kind=TransferKind.FULL,
            source=self.address("prod"),
            target=self.address("dr"),
            regions=[Extent(0, CAPACITY)],
            allocated_only=True,
            dirty=[],
            parent=DigestFiles(None, fresh=True),
            compare_with_target=False,
            log=log,
        )


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    disk = MemoryDisk(CAPACITY)
    for grain in (0, 3, 4, 50):
        disk.write(grain * GRAIN, os.urandom(GRAIN))
    with nfc_host(disk, tmp_path) as source, nfc_host(MemoryDisk(CAPACITY), tmp_path) as target:
        made = Pair(source, target)
        yield made
        made.movers.close()


def test_a_disk_crosses_with_tickets_asked_of_the_control_process(pair: Pair, tmp_path: Path) -> None:
    result = pair.movers.transfer(pair.order(tmp_path / "transfer.log"), lambda progress: None)
    assert pair.hosts["dr"].disk.content() == pair.hosts["prod"].disk.content()
    assert (result.source_mode, result.target_mode) == ("nbdssl", "nbdssl")
    assert result.bytes_moved == 4 * GRAIN
    assert len(pair.tickets) >= 3, "reading, writing, and reading back"
    assert len({ticket.session_id for ticket in pair.tickets}) == len(pair.tickets)


def test_a_site_that_gives_no_ticket_is_the_disks_error(pair: Pair, tmp_path: Path) -> None:
    def refuse(request: TicketRequest) -> NfcTicket:
        raise DiskError("no privilege", code=3014, hint="give it")

    pair.movers.close()
    pair.movers = VddkMovers(pair.connection, lambda site: OWN, tickets=refuse)
    with pytest.raises(DiskError, match="no privilege") as caught:
        pair.movers.probe(pair.address("prod"))
    assert caught.value.hint == "give it"


def test_a_mistake_while_a_ticket_is_made_reaches_the_caller(pair: Pair) -> None:
    def mistake(request: TicketRequest) -> NfcTicket:
        raise ZeroDivisionError("ours")

    pair.movers.close()
    pair.movers = VddkMovers(pair.connection, lambda site: OWN, tickets=mistake)
    with pytest.raises((DiskError, MoverError), match="ours"):
        pair.movers.probe(pair.address("prod"))


def test_its_process_has_openssl_and_no_vddk(pair: Pair) -> None:
    spawner = Spawner()
    mover = MoverProcess(OWN, spawner, tickets=pair.ticket)
    maps = Path(f"/proc/{mover.pid}/maps").read_text()
    environment = Path(f"/proc/{mover.pid}/environ").read_bytes()
    mover.close()
    spawner.end()
    assert "vixDiskLib" not in maps
    assert "ssl" in maps
    assert b"LD_LIBRARY_PATH" not in environment
    assert mover.about["library"] == "vrepl's own NFC"


def test_tickets_and_passwords_stand_nowhere(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(trace.VARIABLE, str(tmp_path / "trace.jsonl"))
    caplog.set_level(logging.DEBUG)
    seen = b""
    spawner = Spawner()
    mover = MoverProcess(OWN, spawner, tickets=pair.ticket)
    from vrepl.movers import messages

    sites = {"prod": messages.encode(pair.connection("prod"))}
    for _ in range(3):
        found = mover.request("probe", address=messages.encode(pair.address("prod")), sites=sites, offsets=[0])
        assert found["capacity"] == CAPACITY
        process = Path(f"/proc/{mover.pid}")
        seen += (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    pair.hosts["prod"].trouble.refuse_session = True
    with pytest.raises(DiskError) as caught:
        mover.request("probe", address=messages.encode(pair.address("prod")), sites=sites, offsets=[0])
    time.sleep(0.1)
    mover.close()
    spawner.end()
    traced = (tmp_path / "trace.jsonl").read_text()
    assert '"op":"ticket"' in traced.replace(" ", ""), "the trace shows that a ticket crossed"
    said = seen.decode() + traced + caplog.text + json.dumps([str(caught.value), caught.value.hint, repr(pair.tickets)])
    assert len(pair.tickets) == 4
    for secret in (PASSWORD, *(ticket.session_id for ticket in pair.tickets)):
        assert secret not in said
