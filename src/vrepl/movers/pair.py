"""Two data movers joined by a byte stream: one reads the source's disk and copies, one has the target's disk open."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from vrepl.errors import MoverError, StreamLostError, VreplError
from vrepl.movers.messages import Json
from vrepl.movers.process import MoverProcess, MoverSettings, Spawner, no_tickets
from vrepl.ports import DiskAttachments, TicketSource


class MoverPair:
    """As `MoverProcess`, for transfers; the pipeline runs in the source's mover."""

    def __init__(
        self,
        source: MoverSettings,
        target: MoverSettings,
        spawner: Spawner,
        *,
        tickets: TicketSource = no_tickets,
        attachments: DiskAttachments | None = None,
    ) -> None:
        """Start both. Raises as MoverProcess."""
        self.settings = (source, target)
        near, far = socket.socketpair()
        with near, far:
            self._streams = near.fileno(), far.fileno()
            self.source = MoverProcess(
                source, spawner, pass_fds=[near.fileno()], tickets=tickets, attachments=attachments
            )
            try:
                self.target = MoverProcess(
                    target, spawner, pass_fds=[far.fileno()], tickets=tickets, attachments=attachments
                )
            except BaseException:
                self.source.close()
                raise
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
