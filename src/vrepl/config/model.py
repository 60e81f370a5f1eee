"""The configuration file's tables as validated models; docs/configuration.md is their prose.

Only shapes and single values are checked here. What spans tables is in `references`, so that both kinds of mistake
can be reported at once. Relative paths are resolved by `load` against the folder of the file.
"""

from __future__ import annotations

import datetime as dt
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from vrepl.config.units import parse_duration, parse_rate, parse_window
from vrepl.model import (
    Bandwidth,
    BandwidthWindow,
    EnableCbt,
    JobSettings,
    OnNotReplicable,
    OnResize,
    PowerState,
    Quiesce,
    ReplicaPlacement,
    RetentionPolicy,
    TransferLimits,
    TransportMode,
)
from vrepl.model.guests import GuestPolicy, OnScriptFailure
from vrepl.model.selection import Criteria, Selection
from vrepl.secrets import SecretReference

MAX_RESTORE_POINTS = 28
"""vSphere allows 32 snapshots in a chain; some are left for failover and for other tools."""

INLINE_HINT = 'a password never stands in the file; write e.g. { file = "/etc/vrepl/secrets/prod" }'


class Table(BaseModel):
    """A TOML table: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _path(value: Any) -> Any:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("must not be empty")
        return Path(value).expanduser()
    return value


FilePath = Annotated[Path, BeforeValidator(_path)]
Name = Annotated[str, Field(min_length=1)]


class SecretTable(Table):
    """Where a password comes from: exactly one of these keys."""

    file: FilePath | None = None
    env: Name | None = None
    command: tuple[Name, ...] | None = Field(default=None, min_length=1)
    keyring: Annotated[str, Field(pattern=r"^.+/[^/]+$")] | None = None
    credential: Annotated[str, Field(pattern=r"^[^/]+$")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_inline_password(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(INLINE_HINT)
        return value

    @field_validator("command", mode="before")
    @classmethod
    def _split_command(cls, value: Any) -> Any:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> SecretTable:
        if len(self.model_fields_set) != 1:
            raise ValueError("takes exactly one of file, env, command, keyring, credential")
        return self

    def reference(self) -> SecretReference:
        kind = next(iter(self.model_fields_set))
        value = getattr(self, kind)
        return SecretReference(kind, value if isinstance(value, tuple) else (str(value),))


def _rate(value: Any) -> Any:
    return parse_rate(value) if isinstance(value, str) else value


Rate = Annotated[int | None, BeforeValidator(_rate)]


class BandwidthTable(Table):
    limit: Rate = None
    windows: dict[str, Rate] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"limit": value} if isinstance(value, str) else value

    @field_validator("windows")
    @classmethod
    def _windows(cls, value: dict[str, int | None]) -> dict[str, int | None]:
        for window in value:
            parse_window(window)
        return value

    def bandwidth(self) -> Bandwidth:
        return Bandwidth(
            self.limit,
            tuple(BandwidthWindow(*parse_window(window), rate) for window, rate in self.windows.items()),
        )


def _seconds(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Wait = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
"""Seconds, or text such as "30m"."""


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


class ProxyTable(Table):
    """A machine (or, in the lab, a folder that stands for one) that runs data movers."""

    libdir: FilePath | None = None
    engine: EngineChoice | None = None
    sysroot: FilePath = Path("/")
    sites: tuple[Name, ...] = ()
    slots: int = Field(default=4, ge=1, le=64)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


DEFAULT_MODES = (TransportMode.SAN, TransportMode.HOTADD, TransportMode.NBDSSL)
Mode = Annotated[TransportMode, BeforeValidator(_lower)]
Modes = Annotated[tuple[Mode, ...], Field(min_length=1)]


class TransportTable(Table):
    source: Modes = DEFAULT_MODES
    target: Modes = DEFAULT_MODES
    fallback: bool = True

    @field_validator("source", "target")
    @classmethod
    def _no_repeats(cls, value: tuple[TransportMode, ...]) -> tuple[TransportMode, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names a mode twice")
        return value


class RetentionTable(Table):
    last: int = Field(default=7, ge=1, le=MAX_RESTORE_POINTS)
    daily: int = Field(default=0, ge=0, le=MAX_RESTORE_POINTS - 1)
    weekly: int = Field(default=0, ge=0, le=MAX_RESTORE_POINTS - 1)
    hourly: int = Field(default=0, ge=0, le=MAX_RESTORE_POINTS - 1)
    monthly: int = Field(default=0, ge=0, le=MAX_RESTORE_POINTS - 1)

    @model_validator(mode="after")
    def _fits_a_chain(self) -> RetentionTable:
        parts = {name: getattr(self, name) for name in ("last", "hourly", "daily", "weekly", "monthly")}
        total = sum(parts.values())
        if total > MAX_RESTORE_POINTS:
            said = " + ".join(f"{name} {count}" for name, count in parts.items() if count)
            raise ValueError(f"{said} is {total}; a replica holds at most {MAX_RESTORE_POINTS}")
        return self

    def policy(self) -> RetentionPolicy:
        return RetentionPolicy(self.last, self.daily, self.weekly, self.hourly, self.monthly)


def _both_sides(value: Any) -> Any:
    if isinstance(value, str):
        return {"source": value, "target": value}
    if not isinstance(value, dict | BaseModel):
        raise ValueError('takes the name of a proxy, or { source = "NAME", target = "NAME" }')
    return value


class JobProxies(Table):
    """The proxy on each side; a side without one is this machine. `proxy = "NAME"` names the same for both."""

    source: Name | None = None
    target: Name | None = None

    @property
    def names(self) -> tuple[str | None, ...]:
        """One, or two different ones."""
        return tuple(dict.fromkeys((self.source, self.target)))


Names = tuple[Name, ...]


class CriteriaTable(Table):
    """Patterns by kind (`model.selection.Criteria`)."""

    names: Names = ()
    paths: Names = ()
    folders: Names = ()
    pools: Names = ()
    vapps: Names = ()
    clusters: Names = ()
    hosts: Names = ()
    datastores: Names = ()
    tags: tuple[Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")], ...] = ()
    attributes: dict[Name, str] = Field(default_factory=dict)
    power: Literal["on", "off", "suspended"] | None = None

    def criteria(self) -> Criteria:
        values = {name: getattr(self, name) for name in CriteriaTable.model_fields if name != "power"}
        return Criteria(**values, power=None if self.power is None else PowerState[self.power.upper()])


class SelectTable(CriteriaTable):
    exclude: CriteriaTable = Field(default_factory=CriteriaTable)

    def selection(self) -> Selection:
        return Selection(self.criteria(), self.exclude.criteria())


def _words(value: Any) -> Any:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


Words = Annotated[tuple[Name, ...], BeforeValidator(_words), Field(min_length=1)]
"""A command and its arguments, or one text that is split as a shell does."""


class LoginTable(Table):
    """A user of a guest's own system."""

    user: Name
    password: SecretTable


class GuestTable(Table):
    """Scripts around the source snapshot, and how patiently the guest is quiesced."""

    pre_freeze: FilePath | None = None
    post_thaw: FilePath | None = None
    host_pre_freeze: Words | None = None
    host_post_thaw: Words | None = None
    logins: dict[Name, LoginTable] = Field(default_factory=dict)
    script_timeout: Duration = 60.0
    frozen_at_most: Duration = 300.0
    on_script_failure: OnScriptFailure = OnScriptFailure.FAIL
    quiesce_tries: int = Field(default=1, ge=1, le=10)
    quiesce_timeout: Duration = 900.0

    @model_validator(mode="after")
    def _can_log_in(self) -> GuestTable:
        if (self.pre_freeze or self.post_thaw) and not self.logins:
            raise ValueError('scripts in guests take logins = { "VM-*" = { user = "…", password = { file = "…" } } }')
        return self

    def policy(self) -> GuestPolicy:
        return GuestPolicy(
            pre_freeze=None if self.pre_freeze is None else str(self.pre_freeze),
            post_thaw=None if self.post_thaw is None else str(self.post_thaw),
            host_pre_freeze=self.host_pre_freeze or (),
            host_post_thaw=self.host_post_thaw or (),
            script_timeout=self.script_timeout,
            frozen_at_most=self.frozen_at_most,
            on_script_failure=self.on_script_failure,
            quiesce_tries=self.quiesce_tries,
            quiesce_timeout=self.quiesce_timeout,
        )


class JobTable(Table):
    source: Name
    target: Name
    vms: Annotated[Names, Field(min_length=1)] = ()
    select: SelectTable = Field(default_factory=SelectTable)
    allow_empty: bool = False
    skip_disks: dict[Name, tuple[Annotated[int, Field(ge=0)], ...]] = Field(default_factory=dict)
    target_datastore: Name
    target_host: Name | None = None
    target_folder: Name | None = None
    target_resource_pool: Name | None = None
    networks: dict[str, Name] = Field(default_factory=dict)
    replica_name: Name = "{name}-replica"
    quiesce: Quiesce = Quiesce.PREFER
    enable_cbt: EnableCbt = EnableCbt.ALWAYS
    guest: GuestTable = Field(default_factory=GuestTable)
    rpo: Duration | None = None
    every: Duration | None = None
    audit: Literal["off"] | Duration = 30 * 86400.0
    retention: RetentionTable = Field(default_factory=RetentionTable)
    transport: TransportTable = Field(default_factory=TransportTable)
    on_resize: OnResize = OnResize.REFUSE
    on_not_replicable: OnNotReplicable = OnNotReplicable.FAIL
    keep_macs: bool = False
    thin: bool | Literal["source"] = "source"
    parallel_vms: int = Field(default=2, ge=1, le=64)
    parallel_disks: int = Field(default=4, ge=1, le=256)
    bandwidth: BandwidthTable = Field(default_factory=BandwidthTable)
    nfc_budget_mib: int = Field(default=32, ge=1, le=96)
    readback: Literal["sample", "all"] = "sample"
    vcenter_connections: int = Field(default=40, ge=4, le=52)
    snapshots_per_datastore: int = Field(default=4, ge=1, le=64)
    proxy: Annotated[JobProxies, BeforeValidator(_both_sides)] = Field(default_factory=JobProxies)

    @field_validator("vms")
    @classmethod
    def _no_repeats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({name for name in value if value.count(name) > 1})
        if repeated:
            raise ValueError(f"names a VM twice: {', '.join(repeated)}")
        return value

    @model_validator(mode="after")
    def _means_something(self) -> JobTable:
        if not self.vms and self.select.criteria().is_empty:
            raise ValueError("names no VM: give it vms = [...] or select = { ... }")
        return self

    @field_validator("replica_name")
    @classmethod
    def _pattern(cls, value: str) -> str:
        unknown = set(re.findall(r"\{([^{}]*)\}", value)) - {"name", "job"}
        if unknown:
            raise ValueError(f"knows {{name}} and {{job}}, not {', '.join(sorted(f'{{{u}}}' for u in unknown))}")
        if re.search(r"[/\\%]", value):
            raise ValueError("must not hold / \\ or %, which vSphere escapes in names")
        return value

    def settings(self, name: str) -> JobSettings:
        """This job as the engine takes it."""
        return JobSettings(
            name=name,
            source=self.source,
            target=self.target,
            vms=self.vms,
            selection=self.select.selection(),
            allow_empty=self.allow_empty,
            skip_disks=dict(self.skip_disks),
            placement=ReplicaPlacement(
                host=self.target_host,
                datastore=self.target_datastore,
                folder=self.target_folder,
                resource_pool=self.target_resource_pool,
                networks=dict(self.networks),
            ),
            replica_name=self.replica_name,
            quiesce=self.quiesce,
            audit=None if self.audit == "off" else dt.timedelta(seconds=self.audit),
            enable_cbt=self.enable_cbt,
            guest=self.guest.policy(),
            retention=self.retention.policy(),
            source_modes=self.transport.source,
            target_modes=self.transport.target,
            fallback=self.transport.fallback,
            on_resize=self.on_resize,
            on_not_replicable=self.on_not_replicable,
            keep_macs=self.keep_macs,
            thin=None if self.thin == "source" else self.thin,
            parallel_vms=self.parallel_vms,
            limits=TransferLimits(
                parallel_disks=self.parallel_disks,
                nfc_budget_mib=self.nfc_budget_mib,
                vcenter_connections=self.vcenter_connections,
                snapshots_per_datastore=self.snapshots_per_datastore,
            ),
            bandwidth=self.bandwidth.bandwidth(),
            readback=self.readback,
            source_proxy=self.proxy.source,
            target_proxy=self.proxy.target,
        )


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
    notify: NotifyTable = Field(default_factory=NotifyTable)
    metrics: MetricsTable = Field(default_factory=MetricsTable)
    report: ReportTable = Field(default_factory=ReportTable)
