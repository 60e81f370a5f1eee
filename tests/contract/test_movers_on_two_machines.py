"""Movers on two machines: one TLS stream with the run's certificates, and nothing that a later run needs lies there."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.hosts import HostHere, settings_by_role
from tests.support.vddk_site import CAPACITY, VddkSite, ignore, make_site, resumed, some_grains
from tests.support.vixdisklib_lab import MIB, FakeLab
from vrepl.errors import DiskError, MoverError, StreamLostError, UsageError
from vrepl.extents import GRAIN, Extent
from vrepl.movers.pair import EndPlace, MoverPair, distant_pair
from vrepl.movers.pool import VddkMovers
from vrepl.movers.process import MoverProcess, Spawner
from vrepl.ports import DigestFiles, TransferProgress, VerifyOrder
from vrepl.proxy.certificates import StreamAuthority
from vrepl.repository.digest_writing import write_base
from vrepl.repository.transferlog import iterate_digests, read_log
from vrepl.stream.end import StreamEnd

MACHINES = [("far", "near"), ("far", None), (None, "near")]


@pytest.fixture
def site(fake_lab: FakeLab) -> VddkSite:
    return make_site(fake_lab, CAPACITY, some_grains(256))


def hosts(machine: str | None) -> HostHere:
    """Of a machine; this one listens to nobody."""
    host = HostHere(machine or "here", listens=machine is not None)
    host.machine = machine  # type: ignore[assignment]
    return host


@pytest.fixture
def movers_on(site: VddkSite) -> Iterator[Callable[[str | None, str | None], VddkMovers]]:
    made: list[VddkMovers] = []

    def make(source: str | None, target: str | None) -> VddkMovers:
        settings = settings_by_role(site, source, target)
        made.append(VddkMovers(site.connection, settings, launchers=hosts, authority=StreamAuthority))
        return made[-1]

    yield make
    for movers in made:
        movers.close()


def the_pair(movers: VddkMovers) -> MoverPair:
    (pair,) = [*(entry[1] for entry in movers._idle), *movers._busy]
    assert isinstance(pair, MoverPair)
    return pair


@pytest.mark.parametrize(("source", "target"), MACHINES)
def test_a_disk_crosses_between_machines_and_the_log_lies_here(
    site: VddkSite, movers_on: Callable[..., VddkMovers], source: str | None, target: str | None
) -> None:
    movers = movers_on(source, target)
    movers.transfer(site.order(), ignore)
    assert site.target.content() == site.source.content()
    state = read_log(site.folder / "transfer.log")
    assert state.done == [Extent(0, CAPACITY)]
    movers.transfer(site.order(attempt=2, compare_with_target=True, fresh=False), ignore)
    assert len(movers._idle) == 1  # the pair stayed warm


def test_known_grains_do_not_cross(site: VddkSite, movers_on: Callable[..., VddkMovers]) -> None:
    movers = movers_on("far", "near")
    movers.transfer(site.order(), ignore)
    base = site.folder / "base"
    runs = iterate_digests(site.folder / "transfer.log")
    write_base(base, "point-1", CAPACITY, runs, background_known=True)
    (site.folder / "transfer.log").unlink()
    known = DigestFiles(base, restore_point_id="point-1")
    result = movers.transfer(replace(site.order(fresh=False), parent=known), ignore)
    assert (result.bytes_moved, result.bytes_read > 0) == (0, True)
    data = bytearray(site.source.flat().read_bytes())
    data[5 * GRAIN] ^= 1
    site.source.flat().write_bytes(bytes(data))
    again = movers.transfer(replace(site.order(fresh=False, attempt=2), parent=known), ignore)
    assert again.bytes_moved == GRAIN
    assert site.target.content() == site.source.content()


def test_verification_on_another_machine_finds_what_differs(
    site: VddkSite, movers_on: Callable[..., VddkMovers]
) -> None:
    movers = movers_on("far", "near")
    movers.transfer(site.order(), ignore)
    base = site.folder / "base"
    write_base(base, "point-1", CAPACITY, iterate_digests(site.folder / "transfer.log"), background_known=True)
    order = VerifyOrder(site.order().target, DigestFiles(base, restore_point_id="point-1"))
    assert not movers.verify(order, ignore).bad_extents
    data = bytearray(site.target.flat().read_bytes())
    data[5 * GRAIN] ^= 1
    site.target.flat().write_bytes(bytes(data))
    assert list(movers.verify(order, ignore).bad_extents) == [Extent(5 * GRAIN, GRAIN)]


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_machine_lost_in_mid_transfer_takes_nothing_along(
    site: VddkSite, movers_on: Callable[..., VddkMovers], end: str
) -> None:
    site.lab.set(bandwidth_bytes_s=16 * MIB)
    movers = movers_on("far", "near")
    killed: list[int] = []

    def kill(progress: TransferProgress) -> None:
        if progress.bytes_moved > 2 * MIB and not killed:
            pair = the_pair(movers)
            killed.append(pair.source.pid if end == "source" else pair.target.pid)
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(MoverError):
        movers.transfer(site.order(), kill)
    site.lab.set()
    for lock in site.lab.nfc.locks:
        lock.state = "released"
    order = resumed(site)
    left = sum(extent.length for extent in order.regions)
    assert left < CAPACITY
    result = movers.transfer(order, ignore)
    assert site.target.content() == site.source.content()
    assert result.bytes_moved <= 1.1 * left


def test_an_error_of_the_repository_reaches_the_order(site: VddkSite, movers_on: Callable[..., VddkMovers]) -> None:
    movers = movers_on("far", "near")
    order = replace(site.order(), log=site.folder / "no" / "such" / "folder" / "log")
    with pytest.raises(Exception, match="No such file"):
        movers.transfer(order, ignore)


# -- who may be at the other end ---------------------------------------------------------------------------------------


def pair_of(
    site: VddkSite, spawner: Spawner, tamper: Callable[[StreamEnd], StreamEnd], authority: StreamAuthority
) -> MoverPair:
    """The source's end is tampered with; the target's listens."""
    settings = settings_by_role(site, "far", "near")
    return distant_pair(
        EndPlace(settings("prod"), HostHere("far", tamper=tamper)),
        EndPlace(settings("dr"), HostHere("near")),
        spawner,
        authority,
        "pair 1",
    )


def of_another_run(end: StreamEnd) -> StreamEnd:
    other = StreamAuthority()
    certificate, key = other.certify("pair 1 connecting")
    return replace(end, certificate=certificate, key=key)


def of_another_pair(end: StreamEnd, authority: StreamAuthority) -> StreamEnd:
    certificate, key = authority.certify("pair 2 connecting")
    return replace(end, certificate=certificate, key=key)


@pytest.mark.parametrize("whose", ["another run's", "another pair's"])
def test_a_certificate_that_is_not_this_pairs_gets_nothing(site: VddkSite, whose: str) -> None:
    authority, spawner = StreamAuthority(), Spawner()
    tamper = of_another_run if whose == "another run's" else lambda end: of_another_pair(end, authority)
    try:
        pair = pair_of(site, spawner, tamper, authority)
        try:
            sites = {name: vars_of(site, name) for name in ("prod", "dr")}
            from vrepl.movers import messages

            with pytest.raises(MoverError):
                pair.request("transfer", None, sites=sites, order=messages.encode(site.order()))
        finally:
            pair.close()
    finally:
        spawner.end()
    assert site.target.content() == bytes(CAPACITY)


def vars_of(site: VddkSite, name: str) -> dict[str, object]:
    from vrepl.movers import messages

    return messages.encode(site.connection(name))


def test_who_has_no_certificate_hears_nothing_and_the_listener_is_gone(site: VddkSite) -> None:
    authority, spawner = StreamAuthority(), Spawner()
    certificate, key = authority.certify("pair 1 listening")
    end = StreamEnd("pair 1 connecting", certificate, key, authority.pem)
    try:
        mover = MoverProcess(settings_by_role(site, None, "near")("dr"), spawner, launcher=HostHere("near"), stream=end)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=authority.pem)
        heard = b""
        with suppress(OSError), socket.create_connection(("127.0.0.1", mover.port), 10) as raw:
            with context.wrap_socket(raw) as connection:
                heard = connection.recv(1)
        assert heard == b""
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", mover.port), 10).close()
        mover.close()
    finally:
        spawner.end()


def test_two_machines_that_nobody_may_connect_to_are_refused(site: VddkSite) -> None:
    spawner = Spawner()
    settings = settings_by_role(site, "far", None)
    try:
        with pytest.raises(UsageError, match="neither may be connected to"):
            distant_pair(
                EndPlace(settings("prod"), HostHere("far", listens=False)),
                EndPlace(settings("dr"), HostHere("here", listens=False)),
                spawner,
                StreamAuthority(),
                "pair 1",
            )
    finally:
        spawner.end()


UNGUESSED = "mOrtgage-17-heron"


def test_no_process_shows_a_secret(
    site: VddkSite, movers_on: Callable[..., VddkMovers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in its arguments and not in its environment, while it works with them."""
    site.lab.set(bandwidth_bytes_s=16 * MIB)
    for where in ("fake_nfc", "vddk_site"):
        monkeypatch.setattr(f"tests.support.{where}.PASSWORD", UNGUESSED)
    movers = movers_on("far", "near")
    shown: list[bytes] = []
    done = threading.Event()

    def look(progress: TransferProgress) -> None:
        if progress.bytes_moved > MIB and not done.is_set():
            done.set()
            pair = the_pair(movers)
            for pid in family(pair.source.pid) | family(pair.target.pid):
                shown.extend(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))

    movers.transfer(site.order(), look)
    assert len(shown) >= 8  # two movers, two relays
    assert not any(secret in text for text in shown for secret in (UNGUESSED.encode(), b"PRIVATE KEY"))


def family(pid: int) -> set[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid, *map(int, children)}


def test_another_vrepl_at_the_other_end_is_refused(site: VddkSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrepl.movers.launching.build_id", lambda: "another")
    spawner = Spawner()
    try:
        with pytest.raises(MoverError, match="another vrepl is installed"):
            MoverProcess(settings_by_role(site, "far", None)("prod"), spawner, launcher=HostHere("far"))
    finally:
        spawner.end()


def test_errors_of_the_far_disk_keep_their_kind(site: VddkSite, movers_on: Callable[..., VddkMovers]) -> None:
    movers = movers_on("far", "near")
    order = site.order()
    missing = replace(order, target=replace(order.target, path="[dr] nowhere/nothing.vmdk"))
    with pytest.raises((DiskError, StreamLostError)):
        movers.transfer(missing, ignore)
