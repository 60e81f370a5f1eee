"""What a machine behind ssh sees of itself."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vrepl.errors import MoverError
from vrepl.proxy.facts import Machine
from vrepl.proxy.ssh import SshMachine

FACTS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FarMachine:
    """A proxy behind ssh. Each question is one connection. Raises ConnectionFailedError, MoverError."""

    ssh: SshMachine
    sysroot: Path = Path("/")

    def product_uuid(self) -> uuid.UUID | None:
        told = self.facts()["product_uuid"]
        return uuid.UUID(told) if told else None

    def visible_luns(self) -> frozenset[str]:
        return frozenset(self.facts()["luns"])

    def closed_ports(self, hosts: Sequence[str], port: int) -> dict[str, str]:
        return dict(self.facts(hosts=list(hosts), port=port)["closed_ports"])

    def no_devices(self) -> str | None:
        told = self.facts()["no_devices"]
        return None if told is None else str(told)

    def facts(self, **questions: Any) -> dict[str, Any]:
        """As `proxy.facts_program` tells them."""
        given = json.dumps({"sysroot": str(self.sysroot), **questions}).encode()
        answer = self.ssh.run(self.ssh.program("vrepl.proxy.facts_program"), given, seconds=FACTS_SECONDS)
        try:
            told = json.loads(answer)
        except ValueError:
            raise MoverError(f"proxy {self.ssh.name} answered with what is no answer: {answer[:200]!r}") from None
        if not isinstance(told, dict):
            raise MoverError(f"proxy {self.ssh.name} answered with what is no answer: {answer[:200]!r}")
        return told


@dataclass
class Remembered:
    """A machine that is asked each thing once."""

    machine: Machine
    _uuid: list[uuid.UUID | None] = field(default_factory=list)
    _luns: list[frozenset[str]] = field(default_factory=list)

    def product_uuid(self) -> uuid.UUID | None:
        if not self._uuid:
            self._uuid.append(self.machine.product_uuid())
        return self._uuid[0]

    def visible_luns(self) -> frozenset[str]:
        if not self._luns:
            self._luns.append(self.machine.visible_luns())
        return self._luns[0]

    def closed_ports(self, hosts: Sequence[str], port: int) -> dict[str, str]:
        return self.machine.closed_ports(hosts, port)

    def no_devices(self) -> str | None:
        return self.machine.no_devices()
