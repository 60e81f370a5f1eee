"""The configuration file's tables as validated models; docs/configuration.md is their prose.

Only shapes and single values are checked here. What spans tables is in `references`, so that both kinds of mistake
can be reported at once. Relative paths are resolved by `load` against the folder of the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vrepl.config.fields import BandwidthTable, FilePath, Name, SecretTable, Table, Wait, Words
from vrepl.config.job import JobTable
from vrepl.config.plan import PlanTable


class SiteTable(Table):
    server: Name
    port: int = Field(default=443, ge=1, le=65535)
    user: Name
    password: SecretTable
    ca_file: FilePath | None = None
    thumbprint_sha256: str | None = None
    nfc_port: int = Field(default=902, ge=1, le=65535)
    nfc_compression: Literal["none", "zlib", "skipz"] = "none"
    bandwidth: BandwidthTable = Field(default_factory=BandwidthTable)
    task_timeout_minutes: int = Field(default=240, ge=1, le=7 * 24 * 60)

    @field_validator("server")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if "/" in value:
            raise ValueError('takes a DNS name or address alone, such as "vcenter.example.com"')
        return value

    @field_validator("thumbprint_sha256")
    @classmethod
    def _thumbprint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        digits = value.replace(":", "").strip().lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digits):
            raise ValueError("takes 64 hexadecimal digits (with or without colons): a SHA-256 fingerprint")
        return ":".join(digits[i : i + 2] for i in range(0, 64, 2)).upper()

    @model_validator(mode="after")
    def _one_trust(self) -> SiteTable:
        if self.ca_file is not None and self.thumbprint_sha256 is not None:
            raise ValueError("takes ca_file or thumbprint_sha256, not both")
        return self


class RepositoryTable(Table):
    path: FilePath


EngineChoice = Literal["auto", "vddk", "own"]
"""Whose code opens disks; `auto`: VDDK's where it is installed, else vrepl's own."""


class VddkTable(Table):
    libdir: FilePath = Path("/opt/vmware-vix-disklib-distrib")
    nfc_buffer_kib: int = Field(default=1024, ge=64, le=8192, multiple_of=64)
    nfc_buffer_count: int = Field(default=4, ge=1, le=32)
    access_wait: Wait = 600.0
    engine: EngineChoice = "auto"

    @property
    def nfc_mib_per_disk(self) -> float:
        """NFC memory that an open disk takes of its ESXi host, in MiB."""
        return self.nfc_buffer_kib * self.nfc_buffer_count / 1024


PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class ProxyTable(Table):
    """A machine that runs data movers: one behind ssh, or (without `ssh`) this one with another VDDK or other facts."""

    ssh: Name | None = None
    ssh_config: FilePath | None = None
    python: Name | None = None
    address: Name | None = None
    listen: bool | Name = True
    ports: Name | None = None
    libdir: FilePath | None = None
    engine: EngineChoice | None = None
    sysroot: FilePath = Path("/")
    sites: tuple[Name, ...] = ()
    slots: int = Field(default=4, ge=1, le=64)

    @field_validator("ssh")
    @classmethod
    def _a_destination(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith("-") or any(letter.isspace() for letter in value)):
            raise ValueError("takes what ssh takes as a destination: host, user@host or ssh://user@host:port")
        return value

    @field_validator("ports")
    @classmethod
    def _some_ports(cls, value: str | None) -> str | None:
        if value is not None:
            first, last = _port_range(value)
            if not 0 < first <= last < 65536:
                raise ValueError('takes a port or a range of ports: "47100-47131"')
        return value

    @property
    def listening(self) -> tuple[bool, str]:
        """Whether movers there may listen, and on which of its addresses ("": all)."""
        return (self.listen, "") if isinstance(self.listen, bool) else (True, self.listen)

    @property
    def port_range(self) -> tuple[int, int]:
        """First and last port that movers there may listen on; (0, 0): any."""
        return (0, 0) if self.ports is None else _port_range(self.ports)


def _port_range(text: str) -> tuple[int, int]:
    found = PORTS.fullmatch(text)
    return (int(found[1]), int(found[2] or found[1])) if found else (0, 0)


class NotifyTable(Table):
    """Who is told how runs went."""

    on_finish: Words | None = None
    urls: tuple[SecretTable, ...] = ()
    ping: SecretTable | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be told of trouble."""
        return self.on_finish is not None or bool(self.urls)


class MetricsTable(Table):
    textfile: FilePath | None = None


class ReportTable(Table):
    html: FilePath | None = None


class Config(Table):
    """The whole file."""

    sites: dict[str, SiteTable] = Field(min_length=1)
    repository: RepositoryTable
    vddk: VddkTable = Field(default_factory=VddkTable)
    proxies: dict[str, ProxyTable] = Field(default_factory=dict)
    defaults: dict[str, Any] = Field(default_factory=dict)
    """Keys of every job that does not say otherwise; they are in the jobs already."""
    jobs: dict[str, JobTable] = Field(default_factory=dict)
    plans: dict[Annotated[str, Field(pattern=r"^[^/]+$")], PlanTable] = Field(default_factory=dict)
    notify: NotifyTable = Field(default_factory=NotifyTable)
    metrics: MetricsTable = Field(default_factory=MetricsTable)
    report: ReportTable = Field(default_factory=ReportTable)
