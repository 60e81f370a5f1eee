"""The VM that a failback makes where it does not go into the original."""

from __future__ import annotations

from vrepl.model import ReplicaSpec, VirtualMachine
from vrepl.model.failover import ElsewherePlace, FailbackRecord, FailoverRecord

MADE_KEY = "vrepl.failback"
"""extraConfig of a VM that a failback made, until it is committed: what is undone may be destroyed."""


def made_mark(record: FailoverRecord, back: FailbackRecord) -> str:
    """Of one failback of one replica."""
    return f"{record.repository_id} {back.id}"


def spec_of(
    record: FailoverRecord, back: FailbackRecord, replica: VirtualMachine, place: ElsewherePlace
) -> ReplicaSpec:
    """As the replica is, with empty disks."""
    return ReplicaSpec(
        name=place.name,
        placement=place.placement,
        hardware=replica.hardware,
        bios_uuid=replica.bios_uuid,
        disks=replica.disks,
        keep_macs=False,
        thin=None,
        extra_config={MADE_KEY: made_mark(record, back)},
        annotation=f"{record.source_name}, brought home by vrepl.",
        instance_uuid=back.instance_uuid,
    )
