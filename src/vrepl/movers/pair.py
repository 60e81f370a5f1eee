"""Two data movers joined by a byte stream: one reads the source's disk and copies, one has the target's disk open."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vrepl.errors import MoverError, StreamLostError, UsageError, VreplError
from vrepl.movers.host_spec import STREAM
from vrepl.movers.launching import Launcher
from vrepl.movers.messages import Json
from vrepl.movers.process import MoverProcess, Spawner, no_tickets
from vrepl.movers.settings import MoverSettings
from vrepl.planner.modes import THIS_MACHINE, called
from vrepl.ports import DiskAttachments, TicketSource
from vrepl.stream.end import StreamEnd


class Authority(Protocol):
    """As `proxy.certificates.StreamAuthority`."""

    @property
    def pem(self) -> str: ...

    def certify(self, name: str) -> tuple[str, str]: ...


class MoverPair:
    """As `MoverProcess`, for transfers; the pipeline runs in the source's mover."""

    def __init__(self, source: MoverProcess, target: MoverProcess, streams: tuple[int, int]) -> None:
        """`streams`: the descriptors of the stream's ends, each in its own process."""
        self.settings = (source.settings, target.settings)
        self.source, self.target = source, target
        self._streams = streams
        self._clean = True

    @property
    def alive(self) -> bool:
        """Whether it can be used again: after an error the stream may hold anything."""
        return self._clean and self.source.alive and self.target.alive

    def request(self, operation: str, report: Callable[[Json], None] | None = None, **arguments: Any) -> Any:
        """A transfer. Raises as MoverProcess.request; a death is told of the mover that died."""
        failures: list[VreplError] = []
        target = threading.Thread(
            target=self._serve, args=(arguments["order"]["target"], arguments["sites"], failures), daemon=True
        )
        target.start()
        try:
            answer = self.source.request(operation, report, stream=self._streams[0], **arguments)
        except VreplError as error:
            self._clean = False
            self.source.end()  # the end of the stream ends the other
            target.join()
            cause = next((failure for failure in failures if not isinstance(failure, StreamLostError)), None)
            if isinstance(error, StreamLostError) and cause is not None:
                raise MoverError(
                    f"the target's data mover failed: {cause.message}", hint=cause.hint or error.hint
                ) from error
            raise
        target.join()
        if failures:
            self._clean = False
            raise failures[0]
        return answer

    def stop(self) -> None:
        """As MoverProcess.stop, for both."""
        self.source.stop()
        self.target.stop()

    def set_rate(self, rate: int) -> None:
        """Bytes per second (0: no limit) of the stream between the two; each reads its own disk at any rate."""
        self.source.set_rates(0, rate)

    def close(self) -> None:
        """As MoverProcess.close, for both."""
        self.source.close()
        self.target.close()

    def _serve(self, address: Json, sites: Json, failures: list[VreplError]) -> None:
        try:
            self.target.request("serve", address=address, sites=sites, stream=self._streams[1], writable=True)
        except VreplError as error:
            failures.append(error)


def local_pair(
    source: MoverSettings,
    target: MoverSettings,
    spawner: Spawner,
    *,
    tickets: TicketSource = no_tickets,
    attachments: DiskAttachments | None = None,
) -> MoverPair:
    """Both on this machine, joined by a pair of sockets. Raises as MoverProcess."""
    near, far = socket.socketpair()
    with near, far:
        streams = near.fileno(), far.fileno()
        reading = MoverProcess(source, spawner, pass_fds=[near.fileno()], tickets=tickets, attachments=attachments)
        try:
            writing = MoverProcess(target, spawner, pass_fds=[far.fileno()], tickets=tickets, attachments=attachments)
        except BaseException:
            reading.close()
            raise
    return MoverPair(reading, writing, streams)


@dataclass(frozen=True, slots=True)
class EndPlace:
    """Where one mover of a pair is to run."""

    settings: MoverSettings
    launcher: Launcher

    @property
    def called(self) -> str:
        """As a sentence names it."""
        return called(self.launcher.machine or THIS_MACHINE)


def who_listens(source: EndPlace, target: EndPlace) -> tuple[EndPlace, EndPlace]:
    """The end that listens, and the one that connects to it: the target's listens if others may connect to it, else
    the source's. Raises UsageError where neither may be connected to."""
    listening, connecting = (target, source) if target.launcher.listens else (source, target)
    if not listening.launcher.listens:
        raise UsageError(
            f"no byte stream from {source.called} to {target.called}: neither may be connected to",
            hint="let one of the two proxies listen (listen = true), and open its ports",
        )
    return listening, connecting


def distant_pair(
    source: EndPlace,
    target: EndPlace,
    spawner: Spawner,
    authority: Authority,
    name: str,
    *,
    tickets: TicketSource = no_tickets,
    attachments: DiskAttachments | None = None,
    encrypted: bool = True,
) -> MoverPair:
    """On two machines, joined by one TLS connection with certificates of this run.

    `name`: of this pair, unique in its run. Raises as MoverProcess and as `who_listens`.
    """
    listening, connecting = who_listens(source, target)
    names = {id(listening): f"{name} listening", id(connecting): f"{name} connecting"}

    def start(place: EndPlace, other: EndPlace, port: int) -> MoverProcess:
        certificate, key = authority.certify(names[id(place)])
        listens = place is listening
        first, last = place.launcher.ports
        end = StreamEnd(
            peer=names[id(other)],
            certificate=certificate,
            key=key,
            authority=authority.pem,
            address=None if listens else other.launcher.address,
            port=first if listens else port,
            last_port=last if listens else 0,
            bind=place.launcher.bind if listens else "",
            encrypted=encrypted,
        )
        return MoverProcess(
            place.settings, spawner, tickets=tickets, attachments=attachments, launcher=place.launcher, stream=end
        )

    first = start(listening, connecting, 0)
    try:
        second = start(connecting, listening, first.port)
    except BaseException:
        first.close()
        raise
    reading, writing = (second, first) if listening is target else (first, second)
    return MoverPair(reading, writing, (STREAM, STREAM))
