"""Keeps what a failover needs to know beside the replica: two files in turn, so that one is whole at any time.

A run writes them when something has changed, and knows that from the repository's copy: an unchanged run asks the
target nothing. A failover reads them from the target alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vrepl.engine.context import ReplicationContext
from vrepl.errors import VreplError
from vrepl.model import JobSettings, VirtualMachine
from vrepl.model.addresses import FailoverPolicy
from vrepl.model.failover_settings import FailoverSettings
from vrepl.planner.addresses import rules_for
from vrepl.ports.failover import ReplicaFiles
from vrepl.repository.documents import DamagedError
from vrepl.repository.failover import SETTINGS_DOCUMENT, read_settings, save_settings
from vrepl.repository.replica_folder import ReplicaFolder

SLOTS = ("vrepl-settings-0.json", "vrepl-settings-1.json")


class ReplicaSettings:
    """Reads and writes the settings of replicas at one site."""

    def __init__(self, files: ReplicaFiles) -> None:
        self._files = files
        self._seen: dict[str, FailoverSettings | None] = {}
        """By replica; what could be read."""

    def read(self, replica: VirtualMachine) -> FailoverSettings | None:
        """Those that count; None where none were ever written whole. Raises RepositoryError for a newer format."""
        whole = [found for name in SLOTS if (found := self._read(replica, name)) is not None]
        self._seen[replica.ref] = max(whole, key=lambda one: one.sequence, default=None)
        return self._seen[replica.ref]

    def seen(self, replica: VirtualMachine) -> FailoverSettings | None:
        """As they were when they were read last; read now if they never were."""
        return self._seen[replica.ref] if replica.ref in self._seen else self.read(replica)

    def write(self, replica: VirtualMachine, settings: FailoverSettings) -> None:
        """Into the file that does not hold what counts now."""
        name = SLOTS[settings.sequence % len(SLOTS)]
        self._files.write_vm_file(replica, name, SETTINGS_DOCUMENT.encode(settings))

    def _read(self, replica: VirtualMachine, name: str) -> FailoverSettings | None:
        content = self._files.read_vm_file(replica, name)
        if content is None:
            return None
        try:
            found = SETTINGS_DOCUMENT.decode(Path(name), content)
        except DamagedError:
            return None
        return found if found.replica_instance_uuid == replica.instance_uuid else None


def policy_for(job: JobSettings, source_name: str) -> FailoverPolicy:
    """The job's, without rules for other VMs."""
    addresses = job.failover.addresses
    return replace(job.failover, addresses=replace(addresses, rules=rules_for(addresses.rules, source_name)))


def keep_settings(
    context: ReplicationContext, folder: ReplicaFolder, source: VirtualMachine, replica: VirtualMachine
) -> None:
    """Beside the replica and in the repository, if it is not what is there. Raises VreplError.

    `source`: as a run read it at its beginning, so that it says what its guest reports, if that can be had.
    """
    before = _known(context, folder, replica)
    if before is None:
        before = FailoverSettings(replica.instance_uuid, source.name)
    guest = before.guest if source.guest is None else source.guest.after(before.guest)
    plans = tuple(plan for plan in context.job.plans if plan.means(source.name))
    now = replace(
        before,
        replica_instance_uuid=replica.instance_uuid,
        source_name=source.name,
        policy=policy_for(context.job, source.name),
        guest=guest,
        plans=plans,
        plans_since=before.plans_since if plans == before.plans else context.services.clock(),
    )
    if now == before and before.sequence:
        return
    now = replace(now, sequence=before.sequence + 1)
    ReplicaSettings(context.target).write(replica, now)
    save_settings(folder, now)


def _known(context: ReplicationContext, folder: ReplicaFolder, replica: VirtualMachine) -> FailoverSettings | None:
    """The repository's copy, or where it has none (it was rebuilt, the replica is another one) what lies there."""
    try:
        kept = read_settings(folder)
    except DamagedError:
        kept = None
    if kept is not None and kept.replica_instance_uuid == replica.instance_uuid:
        return kept
    try:
        return ReplicaSettings(context.target).read(replica)
    except VreplError:
        return None
