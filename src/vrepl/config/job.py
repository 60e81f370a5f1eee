"""`[jobs.NAME]` and the tables inside it, and how a job becomes the engine's settings."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from vrepl.config.failover import FailoverTable
from vrepl.config.fields import BandwidthTable, Duration, FilePath, Name, Names, SecretTable, Table, Words
from vrepl.model import (
    Carry,
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

LONGEST_NAME = 80
"""Characters of the name of a VM or a folder (vSphere Web Services API reference, VirtualMachineConfigSpec.name)."""
MAX_RESTORE_POINTS = 28
"""vSphere allows 32 snapshots in a chain; some are left for failover and for other tools."""


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
    if isinstance(value, str | list):
        return {"source": value, "target": value}
    if not isinstance(value, dict | BaseModel):
        raise ValueError('takes the name of a proxy, several, or { source = "NAME", target = ["NAME", "NAME"] }')
    return value


def _vms_at_once(value: Any) -> Any:
    if value != "auto" and (type(value) is not int or not 1 <= value <= 64):
        raise ValueError('takes "auto", or a number from 1 to 64')
    return value


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Proxies = Annotated[tuple[Name, ...], BeforeValidator(_several)]


class JobProxies(Table):
    """The proxies on each side; a side without one is this machine. `proxy = "NAME"` names the same for both."""

    source: Proxies = ()
    target: Proxies = ()

    @property
    def names(self) -> tuple[str | None, ...]:
        """Each once; None for a side without one."""
        return tuple(dict.fromkeys((*(self.source or (None,)), *(self.target or (None,)))))

    @property
    def written(self) -> str | list[str] | dict[str, str | list[str]]:
        """As one would write it, shortest."""
        sides: dict[str, str | list[str]] = {
            side: names[0] if len(names) == 1 else list(names)
            for side, names in (("source", self.source), ("target", self.target))
            if names
        }
        return sides["source"] if self.source and self.source == self.target else sides


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
    disk_datastores: dict[Name, Name] = Field(default_factory=dict)
    target_cluster: Name | None = None
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
    failover: FailoverTable = Field(default_factory=FailoverTable)
    retention: RetentionTable = Field(default_factory=RetentionTable)
    transport: TransportTable = Field(default_factory=TransportTable)
    carry: tuple[Carry, ...] = ()
    on_resize: OnResize = OnResize.REFUSE
    on_not_replicable: OnNotReplicable = OnNotReplicable.FAIL
    keep_macs: bool = False
    thin: bool | Literal["source"] = "source"
    parallel_vms: Annotated[int | Literal["auto"], BeforeValidator(_vms_at_once)] = "auto"
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

    @field_validator("target_folder")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        steps = [] if value is None else value.split("/")
        if any(not step.strip() for step in steps):
            raise ValueError("is a path of folder names, such as Replicas/Web, below the datacenter's VM folder")
        if any(len(step) > LONGEST_NAME for step in steps):
            raise ValueError(f"has a name of more than {LONGEST_NAME} characters, which vSphere does not take")
        return value

    @field_validator("replica_name")
    @classmethod
    def _pattern(cls, value: str) -> str:
        unknown = set(re.findall(r"\{([^{}]*)\}", value)) - {"name", "job"}
        if unknown:
            raise ValueError(f"knows {{name}} and {{job}}, not {', '.join(sorted(f'{{{u}}}' for u in unknown))}")
        shortest = len(re.sub(r"\{[^{}]*\}", "", value)) + 1
        if shortest > LONGEST_NAME:
            raise ValueError(f"gives names of {shortest} characters or more, and vSphere takes {LONGEST_NAME}")
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
                cluster=self.target_cluster,
            ),
            disk_datastores=dict(self.disk_datastores),
            replica_name=self.replica_name,
            quiesce=self.quiesce,
            audit=None if self.audit == "off" else dt.timedelta(seconds=self.audit),
            enable_cbt=self.enable_cbt,
            guest=self.guest.policy(),
            failover=self.failover.policy(),
            retention=self.retention.policy(),
            source_modes=self.transport.source,
            target_modes=self.transport.target,
            fallback=self.transport.fallback,
            carry=self.carry,
            on_resize=self.on_resize,
            on_not_replicable=self.on_not_replicable,
            keep_macs=self.keep_macs,
            thin=None if self.thin == "source" else self.thin,
            parallel_vms=None if self.parallel_vms == "auto" else self.parallel_vms,
            limits=TransferLimits(
                parallel_disks=self.parallel_disks,
                nfc_budget_mib=self.nfc_budget_mib,
                vcenter_connections=self.vcenter_connections,
                snapshots_per_datastore=self.snapshots_per_datastore,
            ),
            bandwidth=self.bandwidth.bandwidth(),
            readback=self.readback,
            source_proxies=self.proxy.source,
            target_proxies=self.proxy.target,
        )
