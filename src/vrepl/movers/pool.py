"""`ports.DataMovers` over processes that hold a disk engine, here or elsewhere. Movers stay warm between disks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any

from vrepl.errors import DiskError, InterruptedRunError, MoverError, NfcMemoryError
from vrepl.extents import total
from vrepl.movers import messages
from vrepl.movers.launching import Launcher, LocalLauncher
from vrepl.movers.messages import Json
from vrepl.movers.pair import Authority, EndPlace, MoverPair, distant_pair, local_pair
from vrepl.movers.process import MoverProcess, Spawner, no_tickets
from vrepl.movers.settings import MoverSettings
from vrepl.ports import (
    DiskAddress,
    DiskAttachments,
    SiteConnection,
    TicketSource,
    TransferOrder,
    TransferProgress,
    TransferResult,
    VerifyOrder,
    VerifyResult,
)
from vrepl.transport.rates import SharedRate

Key = tuple[MoverSettings] | tuple[MoverSettings, MoverSettings]
"""What a mover (or a pair: source, target) was started with."""

Place = tuple[str, str | None]
"""A site, and the proxy that serves it (`DiskAddress.proxy`)."""

UNDO_SECONDS = 10.0
"""What a call that undoes something gets once the run was stopped; what it leaves is for the next run."""

BRIEF_CALLS = 4
"""Calls at once on one machine that open no disk: as many as disks are in transfer by default, so that movers are
started for these alone (each takes a third of a second of a processor, and some 40 MiB of memory)."""

logger = logging.getLogger("vrepl.mover")


THROTTLED = ("transfer", "verify")

SCATTERED_REGIONS = 256
"""From so many small regions on, buffers made for them are worth a data mover of its own."""
SCATTERED_LENGTH = 256 * 1024
"""Bytes: a region is small up to this mean."""


def is_scattered(order: TransferOrder) -> bool:
    """Whether an order is made of many small regions, as an incremental transfer often is."""
    count = len(order.regions)
    return count >= SCATTERED_REGIONS and total(order.regions) <= count * SCATTERED_LENGTH


def _no_authority() -> Authority:
    raise MoverError("nobody certifies streams between machines here")


def _where(settings: MoverSettings) -> tuple[object, ...]:
    """What one mover has one of."""
    return settings.machine, settings.libdir, settings.engine


class VddkMovers:
    """Each running call has a mover of its own; idle ones are kept and taken again by what they were started with."""

    def __init__(
        self,
        connections: Callable[[str], SiteConnection],
        settings: Callable[[str], MoverSettings],
        *,
        settings_of_proxy: Callable[[str], MoverSettings] | None = None,
        proxies_of: Callable[[str], Sequence[str | None]] = lambda _site: (None,),
        pair: bool = False,
        bandwidth: Callable[[], int | None] = lambda: None,
        tickets: TicketSource = no_tickets,
        attachments: DiskAttachments | None = None,
        launchers: Callable[[str | None], Launcher] = lambda _machine: LocalLauncher(),
        authority: Callable[[], Authority] = _no_authority,
    ) -> None:
        """`connections` and `settings` by site name; asked at each call, from its thread.

        `settings_of_proxy`: by the name of a configured proxy ("": this machine), that of an address or of what a run
        over another one left; raises UsageError. `proxies_of`: by site, the names of those that serve it in this run.
        `pair`: a mover for each side of a transfer even where one could do both. `bandwidth`: bytes/s that all
        transfers and verifications together may move now (None: no limit); asked about once a second, so it may
        follow the clock. `tickets` and `attachments`: for engines of vrepl's own; from any thread. `launchers`: by a
        machine's name; `authority`: makes what signs the certificates of streams between machines.
        """
        self._connections = connections
        self._settings = settings
        self._settings_of_proxy = settings_of_proxy
        self._proxies_of = proxies_of
        self._spawner = Spawner()
        self._lock = threading.Lock()
        self._pair = pair
        self._tickets = tickets
        self._attachments = attachments
        self._launchers = launchers
        self._authority = cache(authority)
        self._pairs = count(1)
        self._rate = SharedRate(bandwidth)
        self._idle: list[tuple[Key, MoverProcess | MoverPair]] = []
        self._busy: set[MoverProcess | MoverPair] = set()
        self._smaller: dict[Place, MoverSettings] = {}
        self._brief: dict[MoverSettings, threading.BoundedSemaphore] = {}
        self._stopped = False
        self._undoing: dict[MoverProcess, str] = {}
        """Movers that give things back after a stop, and the site each of them asks."""

    def transfer(self, order: TransferOrder, progress: Callable[[TransferProgress], None]) -> TransferResult:
        """As `ports.DataMovers.transfer`."""
        reply = self._request_with_smaller_buffers(
            "transfer",
            (order.source, order.target),
            progress,
            scattered=is_scattered(order),
            order=messages.encode(order),
        )
        return messages.decode(TransferResult, reply)

    def verify(self, order: VerifyOrder, progress: Callable[[TransferProgress], None]) -> VerifyResult:
        """As `ports.DataMovers.verify`."""
        reply = self._request_with_smaller_buffers("verify", (order.disk,), progress, order=messages.encode(order))
        return messages.decode(VerifyResult, reply)

    def probe(self, address: DiskAddress, offsets: tuple[int, ...] = (0,)) -> Json:
        """`{"mode", "capacity", "uuid", "samples": {offset: digest of up to 4 KiB}}`; opens the disk for reading."""
        reply: Json = self._request_with_smaller_buffers(
            "probe", (address,), None, address=messages.encode(address), offsets=list(offsets)
        )
        return reply

    def guards_access(self, site: str) -> bool:
        """As `ports.DataMovers.guards_access`."""
        return self._settings_at((site, next(iter(self._proxies_of(site)), None))).libdir is not None

    def prepare_for_access(self, site: str, vm_ref: str, identity: str) -> None:
        """As `ports.DataMovers.prepare_for_access`."""
        self._on_any(
            site,
            lambda settings: self._ask_briefly(site, "prepare_for_access", settings, vm_ref=vm_ref, identity=identity),
        )

    def end_access(self, site: str, vm_ref: str, identity: str) -> None:
        """As `ports.DataMovers.end_access`; works after `stop` too, for it undoes."""
        self._on_any(site, lambda settings: self._undo(site, "end_access", settings, vm_ref=vm_ref, identity=identity))

    def cleanup(self, site: str, vm_ref: str, proxy: str | None = None) -> int:
        """As `ports.DataMovers.cleanup`; works after `stop` too, for it undoes."""
        proxies = self._proxies_of(site) if proxy is None else (proxy,)
        return sum(self._clean_up_on(site, vm_ref, name) for name in proxies)

    def _clean_up_on(self, site: str, vm_ref: str, proxy: str | None) -> int:
        settings = self._settings_at((site, proxy))
        ours = 0
        if self._attachments is not None:
            ours = self._attachments.clean_up(site, vm_ref, proxy)
        if settings.libdir is None:
            return ours
        try:
            cleaned, remaining = self._undo(site, "cleanup", settings, vm_ref=vm_ref)
        except MoverError as error:
            if error.machine is None or proxy is None or self._attachments is None:
                raise
            logger.warning("proxy %s is gone (%s); what hung on its VM is detached from here", proxy, error.message)
            return ours + self._attachments.clean_up_after(site, vm_ref, proxy)
        logger.debug("cleaning up after HotAdd of %s at %s: %d detached, %d remain", vm_ref, site, cleaned, remaining)
        return ours + int(cleaned)

    def warm_up(self, *sites: str) -> None:
        """Start what transfers between these (source, target) take, and keep it, or a mover for one site.

        Raises LibraryError or MoverError where VDDK does not load.
        """
        with self._mover(self._settings_for([(site, None) for site in sites], scattered=False)):
            pass

    def stop(self) -> None:
        """Running calls end soon with InterruptedRunError, later ones at once."""
        with self._lock:
            self._stopped = True
            busy = list(self._busy)
        for mover in busy:
            mover.stop()

    def give_up_on(self, site: str) -> None:
        """The site does not answer, and a stop was asked for: what is being given back there is left."""
        with self._lock:
            vain = [mover for mover, asked in self._undoing.items() if asked == site]
        for mover in vain:
            mover.give_up_in(0)

    def close(self) -> None:
        """End every mover. Idempotent."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
        for _, mover in idle:
            mover.close()
        self._rate.end()
        self._spawner.end()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _request_with_smaller_buffers(
        self,
        operation: str,
        addresses: tuple[DiskAddress, ...],
        progress: Callable[[TransferProgress], None] | None,
        *,
        scattered: bool = False,
        **arguments: Any,
    ) -> Any:
        """As `_request`; where a host has too little NFC memory to *open* a disk, with ever smaller buffers.

        Once bytes have moved, the error is the caller's: only it knows what must be written again.
        """
        sites = [address.site for address in addresses]
        places = [(address.site, address.proxy) for address in addresses]
        moved = False

        def watch(figures: TransferProgress) -> None:
            nonlocal moved
            moved = True
            if progress is not None:
                progress(figures)

        while True:
            settings = self._settings_for(places, scattered)
            try:
                return self._request(settings, operation, sites, watch, **arguments)
            except NfcMemoryError:
                if not self._shrink(places) or moved:
                    raise

    def _settings_at(self, place: Place) -> MoverSettings:
        site, proxy = place
        if place in self._smaller:
            return self._smaller[place]
        if proxy is None or self._settings_of_proxy is None:
            return self._settings(site)
        return self._settings_of_proxy(proxy)

    def _settings_for(self, places: Sequence[Place], scattered: bool) -> Key:
        """One mover where one engine on one machine reaches both sites, else a pair."""
        each = [self._settings_at(place) for place in places]
        if scattered:
            each = [settings.scattered() for settings in each]
        two_proxies = len({proxy for _, proxy in places}) > 1
        if len(each) == 2 and (self._pair or two_proxies or _where(each[0]) != _where(each[1])):
            return each[0], each[1]
        return (min(each, key=lambda settings: settings.nfc_mib),)

    def _shrink(self, places: list[Place]) -> bool:
        """Take smaller buffers there from now on; False if they cannot be smaller."""
        shrunk = False
        for place in dict.fromkeys(places):
            site, settings = place[0], self._settings_at(place)
            smaller = settings.smaller()
            if smaller is None:
                continue
            shrunk = True
            self._smaller[place] = smaller
            logger.warning(
                "site %s: NFC memory is short; going on with buffers of %.2f MiB a disk instead of %.2f",
                site, smaller.nfc_mib, settings.nfc_mib,
            )  # fmt: skip
        return shrunk

    def _request(
        self,
        settings: Key,
        operation: str,
        sites: list[str],
        progress: Callable[[TransferProgress], None] | None,
        **arguments: Any,
    ) -> Any:
        report: Callable[[Json], None] | None = None
        if progress is not None:

            def report(value: Json) -> None:
                progress(messages.decode(TransferProgress, value))

        with self._mover(settings) as mover:
            if operation not in THROTTLED:
                return mover.request(operation, report, sites=self._sites(sites), **arguments)
            with self._rate.transfer(mover.set_rate) as part:
                # Of a pair, only what passes between the two is held to the rate.
                read = "bytes_moved" if isinstance(mover, MoverPair) else "bytes_read"

                def watch(value: Json) -> None:
                    part.moved(max(value[read], value["bytes_moved"]))
                    if report is not None:
                        report(value)

                return mover.request(operation, watch, sites=self._sites(sites), **arguments)

    def _ask_briefly(self, site: str, operation: str, settings: MoverSettings, **arguments: Any) -> Any:
        """What opens no disk, and is soon done: VMs in their dozens ask it at once, and take turns at a few movers."""
        with self._lock:
            turns = self._brief.setdefault(settings, threading.BoundedSemaphore(BRIEF_CALLS))
        with turns:
            return self._request((settings,), operation, [site], None, **arguments)

    def _undo(self, site: str, operation: str, settings: MoverSettings, **arguments: Any) -> Any:
        """What gives things back is done even when the run was stopped: then by a mover of its own, in good time."""
        if not self._stopped:
            try:
                return self._ask_briefly(site, operation, settings, **arguments)
            except InterruptedRunError:
                pass  # stopped just now
        mover = self._start_one(settings)
        try:
            mover.give_up_in(UNDO_SECONDS)
            with self._lock:
                self._undoing[mover] = site
            return mover.request(operation, None, sites=self._sites([site]), **arguments)
        except InterruptedRunError as error:
            raise DiskError(
                f"VDDK did not do it within {UNDO_SECONDS:.0f} s of the stop, or its site does not answer",
                hint="the next run does it",
            ) from error
        finally:
            with self._lock:
                self._undoing.pop(mover, None)
            mover.close()

    def _on_any(self, site: str, ask: Callable[[MoverSettings], Any]) -> Any:
        """What every proxy of a site can do as well: of the first that lives."""
        failure: MoverError | None = None
        for proxy in self._proxies_of(site):
            try:
                return ask(self._settings_at((site, proxy)))
            except MoverError as error:
                if error.machine is None:
                    raise
                failure = error
        raise failure or MoverError(f"no proxy serves site {site}")

    def _sites(self, names: list[str]) -> Mapping[str, Json]:
        return {name: messages.encode(self._connections(name)) for name in names}

    @contextmanager
    def _mover(self, settings: Key) -> Iterator[MoverProcess | MoverPair]:
        """An idle mover (or pair) with these settings, or a new one; kept afterwards if it still lives."""
        mover = self._take(settings)
        try:
            yield mover
        finally:
            with self._lock:
                self._busy.discard(mover)
                keep = mover.alive and not self._stopped
                if keep:
                    self._idle.append((settings, mover))
            if not keep:
                mover.close()

    def _take(self, settings: Key) -> MoverProcess | MoverPair:
        with self._lock:
            if self._stopped:
                raise InterruptedRunError("stopped")
            for entry in self._idle:
                if entry[0] == settings and entry[1].alive:
                    self._idle.remove(entry)
                    self._busy.add(entry[1])
                    return entry[1]
        mover = self._start(settings)
        with self._lock:
            if not self._stopped:
                self._busy.add(mover)
                return mover
        mover.close()
        raise InterruptedRunError("stopped")

    def _start(self, settings: Key) -> MoverProcess | MoverPair:
        if len(settings) == 1:
            return self._start_one(settings[0])
        source, target = settings
        if source.machine is None and target.machine is None:
            return local_pair(source, target, self._spawner, tickets=self._tickets, attachments=self._attachments)
        return distant_pair(
            EndPlace(source, self._launchers(source.machine)),
            EndPlace(target, self._launchers(target.machine)),
            self._spawner,
            self._authority(),
            f"pair {next(self._pairs)}",
            tickets=self._tickets,
            attachments=self._attachments,
        )

    def _start_one(self, settings: MoverSettings) -> MoverProcess:
        launcher = self._launchers(settings.machine)
        return MoverProcess(
            settings, self._spawner, tickets=self._tickets, attachments=self._attachments, launcher=launcher
        )
