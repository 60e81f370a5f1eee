"""What a machine behind ssh sees of itself."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrepl.errors import MoverError
from vrepl.proxy.ssh import SshMachine

FACTS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FarMachine:
    """A proxy behind ssh. Each question is one connection. Raises ConnectionFailedError, MoverError."""

    ssh: SshMachine
    sysroot: Path = Path("/")

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


class RememberedMachine:
    """`proxy.facts.Machine` behind ssh, which is asked once for what does not change; thread-safe."""

    def __init__(self, far: FarMachine) -> None:
        self._far = far
        self._told: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def product_uuid(self) -> uuid.UUID | None:
        told = self._facts()["product_uuid"]
        return uuid.UUID(told) if told else None

    def visible_luns(self) -> frozenset[str]:
        return frozenset(self._facts()["luns"])

    def closed_ports(self, hosts: Sequence[str], port: int) -> dict[str, str]:
        return dict(self._far.facts(hosts=list(hosts), port=port)["closed_ports"])

    def no_devices(self) -> str | None:
        told = self._facts()["no_devices"]
        return None if told is None else str(told)

    def _facts(self) -> dict[str, Any]:
        with self._lock:
            if self._told is None:
                self._told = self._far.facts()
            return self._told
