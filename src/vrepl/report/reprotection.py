"""The job that replicates back what was made final at the target: as TOML, and the command that seeds it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from vrepl.report.model import Json

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
"""What TOML takes for a key without quotes."""


@dataclass(frozen=True, slots=True)
class ReverseJob:
    """One job, to be added to the configuration."""

    name: str
    source: str
    target: str
    originals: Mapping[str, str]
    """VM at what was the target -> its original, which becomes its replica."""
    datastore: str
    """Of the originals, where disks that are new would go."""
    networks: Mapping[str, str]

    @property
    def toml(self) -> str:
        lines = [
            f"[jobs.{self.name if BARE_KEY.fullmatch(self.name) else _quoted(self.name)}]",
            f"source = {_quoted(self.source)}",
            f"target = {_quoted(self.target)}",
            f"vms = [{', '.join(_quoted(vm) for vm in self.originals)}]",
            f"target_datastore = {_quoted(self.datastore)}",
        ]
        if self.networks:
            pairs = ", ".join(f"{_quoted(old)} = {_quoted(new)}" for old, new in self.networks.items())
            lines.append(f"networks = {{ {pairs} }}")
        return "\n".join(lines) + "\n"

    @property
    def command(self) -> str:
        """The first run: both sides are read once, and only what differs crosses."""
        maps = " ".join(f"--map {shlex.quote(f'{vm}={original}')}" for vm, original in self.originals.items())
        return f"vrepl replicate {shlex.quote(self.name)} {maps}"

    def to_json(self) -> Json:
        return {"job": self.name, "toml": self.toml, "command": self.command}


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=False)
