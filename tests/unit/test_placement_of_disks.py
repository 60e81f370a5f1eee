"""On which datastore each disk of a replica goes: by the job's rules, and only where one host mounts them all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.memory_site import HARDWARE
from vrepl.errors import NotFoundError, UsageError
from vrepl.model import Datastore, Disk, JobSettings, PowerState, ReplicaPlacement, RetentionPolicy, VirtualMachine
from vrepl.planner.knowledge import ReplicaKnowledge
from vrepl.planner.placement import Placed, place_disks
from vrepl.planner.vm import plan_vm

GIB = 1 << 30
STORES = (
    Datastore("ds-1", "dr-home", "VMFS", 100 * GIB, 50 * GIB, hosts=("esx-1", "esx-2"), datacenter="dc"),
    Datastore("ds-2", "dr-ssd-01", "VMFS", 100 * GIB, 9 * GIB, hosts=("esx-1",), datacenter="dc"),
    Datastore("ds-3", "dr-ssd-02", "VMFS", 100 * GIB, 8 * GIB, hosts=("esx-1", "esx-2"), datacenter="dc"),
    Datastore("ds-4", "dr-far", "VMFS", 100 * GIB, 99 * GIB, hosts=("esx-9",), datacenter="dc"),
    Datastore("ds-5", "gold", "NFS", 100 * GIB, 5 * GIB, hosts=("esx-2",), datacenter="dc"),
    Datastore("ds-6", "dr-ssd-09", "VMFS", 100 * GIB, 99 * GIB, hosts=("esx-1",), datacenter="other"),
)


def disk(number: int, datastore: str, capacity: int = 2 * GIB) -> Disk:
    path = f"[{datastore}] web/web_{number}.vmdk"
    return Disk(2000 + number, number, f"Hard disk {number + 1}", path, path, capacity, f"uuid-{number}", datastore)


def placed(
    rules: dict[str, str], *disks: Disk, host: str | None = None, replica: VirtualMachine | None = None
) -> Placed:
    job = JobSettings(
        name="web", source="prod", target="dr", vms=("web",), retention=RetentionPolicy(last=3),
        placement=ReplicaPlacement(host, "dr-home"), disk_datastores=rules,
    )  # fmt: skip
    vm = VirtualMachine("vm-1", "web", "uuid", "bios", PowerState.OFF, "esx", "dc", "group", HARDWARE, disks)
    plan = replace(plan_vm(vm, job, ReplicaKnowledge()), replica=replica)
    return place_disks(plan, job, STORES, "dr")


@pytest.mark.parametrize(
    ("rules", "host", "expected"),
    [
        ({}, None, ["dr-home", "dr-home"]),
        ({"prod-ssd-*": "dr-ssd-02"}, None, ["dr-ssd-02", "dr-home"]),
        ({"prod-ssd-*": "dr-ssd-*"}, None, ["dr-ssd-01", "dr-home"]),
        ({"prod-ssd-*": "dr-ssd-*"}, "esx-2", ["dr-ssd-02", "dr-home"]),
        ({"prod-ssd-01": "dr-home", "*": "dr-ssd-*"}, None, ["dr-home", "dr-ssd-01"]),
        ({"*": "dr-ssd-*"}, None, ["dr-ssd-01", "dr-ssd-02"]),  # the second counts what the first took
        ({"*": "*"}, None, ["dr-home", "dr-home"]),
        ({"gold": "same-name"}, None, ["dr-home", "gold"]),
        ({"nothing-*": "dr-far"}, None, ["dr-home", "dr-home"]),
    ],
)
def test_where_new_disks_go(rules: dict[str, str], host: str | None, expected: list[str]) -> None:
    found = placed(rules, disk(0, "prod-ssd-01"), disk(1, "gold"), host=host)
    assert [store.name for store in found.disks.values()] == expected
    assert found.home.name == "dr-home"
    assert set(found.named().values()) == set(expected) - {"dr-home"}
    assert sum(found.needed.values()) == 4 * GIB
    for store in found.disks.values():
        assert found.needed[store.ref] == 2 * GIB * expected.count(store.name)


@pytest.mark.parametrize("rule", ["dr-far", "dr-ssd-3*", "dr-ssd-09", "same-name"])
def test_a_datastore_that_no_such_host_mounts_is_refused(rule: str) -> None:
    with pytest.raises(NotFoundError, match="on hosts that mount dr-home"):
        placed({"*": rule}, disk(0, "prod-ssd-01"), host="esx-2")


def test_all_disks_of_a_vm_must_be_on_one_host() -> None:
    """dr-ssd-01 is mounted by esx-1 only, gold by esx-2 only."""
    with pytest.raises(NotFoundError):
        placed({"prod-ssd-01": "dr-ssd-01", "gold": "same-name"}, disk(0, "prod-ssd-01"), disk(1, "gold"))


def test_an_ambiguous_home_is_refused() -> None:
    twins = (STORES[0], replace(STORES[0], ref="ds-9", datacenter="dc-2"))
    job = JobSettings(
        "web", "prod", "dr", ("web",), ReplicaPlacement(None, "dr-home"), retention=RetentionPolicy(last=1)
    )
    vm = VirtualMachine("vm-1", "web", "uuid", "bios", PowerState.OFF, "esx", "dc", "group", HARDWARE, (disk(0, "x"),))
    with pytest.raises(UsageError, match="2 datastores named dr-home"):
        place_disks(plan_vm(vm, job, ReplicaKnowledge()), job, twins, "dr")


def test_a_disk_that_is_there_stays_and_a_new_one_goes_by_the_rules() -> None:
    replica = VirtualMachine(
        "vm-9", "web-replica", "uuid-r", "bios", PowerState.OFF, "esx-1", "dc", "group", HARDWARE,
        (replace(disk(0, "dr-ssd-02"), datastore_ref="ds-3"),),
    )  # fmt: skip
    found = placed({"*": "dr-ssd-01"}, disk(0, "prod-ssd-01"), disk(1, "gold"), replica=replica)
    assert [store.name for store in found.disks.values()] == ["dr-ssd-02", "dr-ssd-01"]
