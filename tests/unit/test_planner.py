"""The planner's rules as tables: facts in, decision out."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from vrepl.extents import GRAIN, Extent, total
from vrepl.model import (
    Consistency,
    Controller,
    Datastore,
    Disk,
    DiskPoint,
    Hardware,
    JobSettings,
    NetworkAdapter,
    OnNotReplicable,
    OnResize,
    PowerState,
    Quiesce,
    ReplicaPlacement,
    ReplicaRecord,
    ReplicaState,
    RestorePoint,
    Snapshot,
    TransferKind,
    VirtualMachine,
)
from vrepl.planner.disks import DiskDecision, DiskFacts, UnfinishedDisk, decide_disk, regions_of, without_cbt
from vrepl.planner.knowledge import NameTaken, ReplicaDisk, ReplicaKnowledge, disk_facts, expected_disk
from vrepl.planner.preflight import ConflictKind
from vrepl.planner.vm import (
    ReplicaAction,
    VmPlan,
    plan_vm,
    space_conflict,
    space_needed,
)

CAPACITY = 100 * GRAIN
ADAPTERS = (
    NetworkAdapter(4000, "Network adapter 1", "vmxnet3", "prod-net", "", False),
    NetworkAdapter(4001, "Network adapter 2", "e1000e", "lan", "", False),
)
FULL, INCREMENTAL, COMPARE = TransferKind.FULL, TransferKind.INCREMENTAL, TransferKind.COMPARE


def disk(key: int = 2000, **changes: Any) -> Disk:
    index = key - 2000
    base = f"[ds] web-01/web-01_{index}.vmdk"
    made = Disk(
        key=key,
        index=index,
        label=f"Hard disk {index + 1}",
        path=base,
        base_path=base,
        capacity=CAPACITY,
        uuid=f"uuid-{key}",
        datastore="ds",
        unit_number=index,
        change_id="52 aa/9",
    )
    return replace(made, **changes)


def disk_point(of: Disk, **changes: Any) -> DiskPoint:
    made = DiskPoint(
        source_key=of.key,
        index=of.index,
        label=of.label,
        capacity=of.capacity,
        source_disk_uuid=of.uuid,
        source_base_path=of.base_path,
        change_id="52 aa/5",
        target_key=of.key,
        kind=INCREMENTAL,
        bytes_moved=7 * GRAIN,
    )
    return replace(made, **changes)


def unfinished(**changes: Any) -> UnfinishedDisk:
    """Half of what was planned is done; writes were allowed a little further."""
    made = UnfinishedDisk(
        planned=[Extent(0, 40 * GRAIN)],
        done=[Extent(0, 20 * GRAIN)],
        allowed=24 * GRAIN,
        position=replace(disk().position, change_id="52 aa/7"),
        dirty=[Extent(90 * GRAIN, GRAIN)],
    )
    names = {"change_id", "disk_uuid", "base_path", "capacity"}
    position = replace(made.position, **{name: value for name, value in changes.items() if name in names})
    return replace(made, position=position, **{name: value for name, value in changes.items() if name not in names})


# -- one disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed_disk", "changed_point", "reason"),
    [
        ({}, {"change_id": None}, "has no change ID"),
        ({"change_id": None}, {}, "gives no change ID"),
        ({"change_id": "52 bb/9"}, {}, "CBT was reset"),
        ({"capacity": 2 * CAPACITY}, {}, "capacity changed"),
        ({"uuid": "another"}, {}, "UUID changed"),
        ({"uuid": "another", "change_id": None}, {}, "another disk stands in its place"),
        ({"base_path": "[other] web-01/web-01_0.vmdk"}, {}, "moved from [ds]"),
    ],
)
@pytest.mark.parametrize("digests_known", [True, False])
def test_cbt_is_distrusted_with_its_reason(
    changed_disk: dict[str, Any], changed_point: dict[str, Any], reason: str, digests_known: bool
) -> None:
    point = disk_point(disk(), **changed_point)
    decision = decide_disk(disk(**changed_disk), DiskFacts(point, digests_known=digests_known))
    assert (decision.kind, decision.whole_disk, decision.since_change_id) == (COMPARE, True, None)
    assert reason in decision.reason
    assert decision.compare_with_target is not digests_known
    assert not decision.fresh


def test_what_a_users_snapshot_changes_of_the_path_is_no_reason_to_distrust() -> None:
    """A snapshot moves the leaf; only the base path tells that a disk is another one."""
    decision = decide_disk(
        disk(path="[ds] web-01/web-01_0-000003.vmdk"), DiskFacts(disk_point(disk()), digests_known=True)
    )
    assert (decision.kind, decision.since_change_id) == (INCREMENTAL, "52 aa/5")


@pytest.mark.parametrize(
    ("facts", "kind", "since", "carried", "fresh", "reads_target"),
    [
        # nothing was ever sealed, and vrepl made the disk empty
        ({}, FULL, None, 0, True, False),
        ({"unfinished": unfinished()}, FULL, "52 aa/7", 20, True, False),
        ({"unfinished": unfinished(change_id=None)}, FULL, None, 0, True, False),
        ({"unfinished": unfinished(change_id="52 bb/1")}, FULL, None, 0, True, False),
        ({"unfinished": unfinished(capacity=CAPACITY - GRAIN)}, FULL, None, 0, True, False),
        ({"unfinished": unfinished(disk_uuid="other")}, FULL, None, 0, True, False),
        ({"unfinished": unfinished(base_path="[x] y")}, FULL, None, 0, True, False),
        # a restore point is the leaf's parent
        ({"sealed": True}, INCREMENTAL, "52 aa/5", 0, False, False),
        ({"sealed": True, "unfinished": unfinished()}, INCREMENTAL, "52 aa/7", 20, False, False),
        ({"sealed": True, "unfinished": unfinished(change_id=None)}, COMPARE, None, 0, False, False),
        # nothing is sure of the leaf
        ({"sealed": True, "leaf": False}, COMPARE, None, 0, False, True),
        ({"sealed": True, "leaf": False, "unfinished": unfinished()}, COMPARE, None, 0, False, True),
        ({"leaf": False}, COMPARE, None, 0, False, True),
        ({"made_empty": False}, COMPARE, None, 0, False, True),
        ({"made_empty": False, "unfinished": unfinished()}, COMPARE, None, 0, False, True),
        # and still is not, until a comparison is done
        ({"unfinished": unfinished(compare_with_target=True)}, COMPARE, "52 aa/7", 20, False, True),
        ({"sealed": True, "unfinished": unfinished(compare_with_target=True)}, COMPARE, "52 aa/7", 20, False, True),
        (
            {"made_empty": False, "unfinished": unfinished(compare_with_target=True, change_id="52 bb/1")},
            COMPARE,
            None,
            0,
            False,
            True,
        ),
    ],
)
def test_decisions(
    facts: dict[str, Any], kind: TransferKind, since: str | None, carried: int, fresh: bool, reads_target: bool
) -> None:
    left = facts.get("unfinished")
    decision = decide_disk(
        disk(),
        DiskFacts(
            disk_point(disk()) if facts.get("sealed") else None,
            left,
            digests_known=True,
            leaf_is_sealed_state=facts.get("leaf", True),
            made_empty=facts.get("made_empty", True),
        ),
    )
    assert decision.kind is kind
    assert decision.since_change_id == since
    assert total(decision.carry) == carried * GRAIN
    assert (decision.fresh, decision.compare_with_target) == (fresh, reads_target)
    assert decision.whole_disk is (since is None)
    # What an attempt may have written is never believed, whatever else is decided.
    assert list(decision.dirty) == ([] if left is None else [Extent(0, 24 * GRAIN), Extent(90 * GRAIN, GRAIN)])
    assert decision.reason


def test_an_unfinished_comparison_after_a_reset_goes_on() -> None:
    """What it planned was everything that could differ; the point's own change ID no longer matters."""
    left = unfinished(planned=[Extent(0, CAPACITY)], change_id="52 bb/1")
    decision = decide_disk(disk(change_id="52 bb/3"), DiskFacts(disk_point(disk()), left, digests_known=True))
    assert (decision.kind, decision.since_change_id) == (COMPARE, "52 bb/1")
    assert decision.carry == (Extent(20 * GRAIN, 80 * GRAIN),)
    assert "CBT was reset" in decision.reason


def test_regions_are_what_is_owed_and_what_changed_in_whole_grains() -> None:
    decision = DiskDecision(INCREMENTAL, "r", since_change_id="x", carry=(Extent(4 * GRAIN, GRAIN),))
    assert regions_of(decision, [Extent(5 * GRAIN + 7, 3), Extent(CAPACITY - 1, 1)], CAPACITY) == [
        Extent(4 * GRAIN, 2 * GRAIN),
        Extent(CAPACITY - GRAIN, GRAIN),
    ]
    whole = replace(decision, whole_disk=True)
    assert regions_of(whole, [], CAPACITY) == [Extent(0, CAPACITY)]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("digests_known", [True, False])
@pytest.mark.parametrize("reads_target", [True, False])
def test_without_an_answer_of_cbt_everything_is_gone_through(
    fresh: bool, digests_known: bool, reads_target: bool
) -> None:
    before = DiskDecision(
        COMPARE, "r", since_change_id="x", dirty=(Extent(0, 1),), fresh=fresh, compare_with_target=reads_target
    )
    decision = without_cbt(before, "no answer", digests_known=digests_known)
    assert decision.whole_disk
    assert decision.since_change_id is None
    assert decision.dirty == before.dirty
    assert "no answer" in decision.reason
    assert decision.fresh is fresh
    assert decision.compare_with_target is (not fresh and (reads_target or not digests_known))


# -- one VM -----------------------------------------------------------------------------------------------------------


def machine(*disks: Disk, **changes: Any) -> VirtualMachine:
    hardware = Hardware(19, "debian12_64Guest", "efi", False, 1, 1, 512, controllers=(Controller(1000, "pvscsi", 0),))
    made = VirtualMachine(
        ref="vm-1",
        name="web-01",
        instance_uuid="i-1",
        bios_uuid="b-1",
        power=PowerState.ON,
        host="esx",
        datacenter="dc",
        folder_ref="group-1",
        hardware=hardware,
        disks=disks or (disk(),),
        cbt_enabled=True,
        tools_running=True,
    )
    return replace(made, **changes)


JOB = JobSettings(
    name="demo",
    source="prod",
    target="dr",
    vms=("web-01",),
    placement=ReplicaPlacement(host=None, datastore="ds", networks={"prod-net": "dr-net"}),
)
SNAPSHOT = Snapshot("snapshot-1", "mine", "", dt.datetime(2026, 1, 1, tzinfo=dt.UTC), None)


def point(identity: str = "20260101T000000Z-000001", *disks: DiskPoint) -> RestorePoint:
    return RestorePoint(
        id=identity,
        time=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        run_id="run",
        job="demo",
        consistency=Consistency.CRASH,
        snapshot_name=f"vrepl {identity}",
        parent_id=None,
        disks=disks or (disk_point(disk()),),
    )


def known(**changes: Any) -> ReplicaKnowledge:
    record = ReplicaRecord(
        id="prod-i-1",
        source_site="prod",
        source_instance_uuid="i-1",
        source_name="web-01",
        target_site="dr",
        target_instance_uuid="r-1",
        target_name="web-01-replica",
        job="demo",
        disk_keys={2000: 2000},
    )
    made = ReplicaKnowledge(
        record=record,
        replica=machine(ref="vm-9", name="web-01-replica", instance_uuid="r-1", power=PowerState.OFF),
        restore_points=(point(),),
        digests_known=frozenset({2000}),
    )
    return replace(made, **changes)


def kind_of(plan: VmPlan) -> list[TransferKind]:
    return [one.decision.kind for one in plan.disks]


def test_first_run_creates() -> None:
    plan = plan_vm(machine(cbt_enabled=False), JOB, ReplicaKnowledge())
    assert (plan.action, plan.replica_name, plan.conflict) == (ReplicaAction.CREATE, "web-01-replica", None)
    assert kind_of(plan) == [FULL]
    assert plan.enable_cbt
    assert plan.disks[0].upper_bound == CAPACITY


def test_second_run_updates_and_tells_the_last_figure() -> None:
    plan = plan_vm(machine(), JOB, known())
    assert (plan.action, kind_of(plan), plan.disks[0].last_moved) == (ReplicaAction.UPDATE, [INCREMENTAL], 7 * GRAIN)
    assert not plan.enable_cbt


@pytest.mark.parametrize(
    ("vm", "job", "state", "kind", "words"),
    [
        ({"template": True}, {}, {}, ConflictKind.NOT_REPLICABLE, "template"),
        ({"disks": ()}, {}, {}, ConflictKind.NOT_REPLICABLE, "no disk"),
        ({"disks": (disk(rdm="physicalMode"),)}, {}, {}, ConflictKind.NOT_REPLICABLE, "raw device"),
        ({"disks": (disk(mode="independent_persistent"),)}, {}, {}, ConflictKind.NOT_REPLICABLE, "independent"),
        ({"disks": (disk(sharing="sharingMultiWriter"),)}, {}, {}, ConflictKind.NOT_REPLICABLE, "multi-writer"),
        ({"disks": (disk(capacity=0),)}, {}, {}, ConflictKind.NOT_REPLICABLE, "no capacity"),
        ({"tools_running": False}, {"quiesce": Quiesce.REQUIRE}, {}, ConflictKind.QUIESCE, "Tools"),
        ({"disks": (disk(capacity=2 * CAPACITY),)}, {}, {}, ConflictKind.DISK_RESIZED, "resized"),
        (
            {},
            {},
            {"replica": machine(name="web-01-replica", power=PowerState.ON)},
            ConflictKind.REPLICA_POWERED_ON,
            "poweredOn",
        ),
        (
            {},
            {},
            {"record": replace(known().record, state=ReplicaState.FAILED_OVER)},  # type: ignore[type-var]
            ConflictKind.REPLICA_STATE,
            "failed-over",
        ),
        (
            {},
            {},
            {"record": None, "replica": None, "restore_points": (), "name_taken_by": NameTaken.VM},
            ConflictKind.REPLICA_NAME_TAKEN,
            "already has a VM",
        ),
        (
            {},
            {},
            {"record": None, "replica": None, "restore_points": (), "name_taken_by": NameTaken.UNKNOWN_REPLICA},
            ConflictKind.REPLICA_NAME_TAKEN,
            "a replica of it, of which this repository knows nothing",
        ),
        (
            {},
            {},
            {"record": None, "replica": None, "restore_points": (), "name_taken_by": NameTaken.OTHER_REPLICA},
            ConflictKind.REPLICA_NAME_TAKEN,
            "the replica of another VM",
        ),
    ],
)
def test_refusals_say_what_and_what_to_do(
    vm: dict[str, Any], job: dict[str, Any], state: dict[str, Any], kind: ConflictKind, words: str
) -> None:
    plan = plan_vm(machine(**vm), replace(JOB, **job), known(**state))
    assert plan.conflict is not None
    assert plan.conflict.kind is kind
    assert words in plan.conflict.message
    assert plan.conflict.hint


def test_shared_buses_are_refused() -> None:
    shared = replace(machine().hardware, controllers=(Controller(1000, "lsilogic", 0, sharing="physicalSharing"),))
    plan = plan_vm(machine(hardware=shared), JOB, ReplicaKnowledge())
    assert plan.conflict is not None
    assert "bus sharing" in plan.conflict.message


def test_a_disk_may_be_left_out_but_never_silently() -> None:
    vm = machine(disk(), disk(2001, mode="independent_persistent"))
    plan = plan_vm(vm, replace(JOB, on_not_replicable=OnNotReplicable.SKIP_DISK), ReplicaKnowledge())
    assert plan.conflict is None
    assert [one.disk.key for one in plan.disks] == [2000]
    assert [(one.key, "independent" in why) for one, why in plan.left_out] == [(2001, True)]


@pytest.mark.parametrize(
    ("vm", "state", "words"),
    [
        ({"name": "www-01"}, {}, "renamed from web-01 to www-01"),
        ({"disks": (disk(), disk(2001))}, {}, "disk 1 (Hard disk 2) was added"),
        ({}, {"restore_points": (point("1", disk_point(disk()), disk_point(disk(2001))),)}, "was removed from the"),
        ({}, {"lost_restore_points": (point("0"),)}, "gone from the replica are forgotten: 0"),
        ({}, {"replica": None}, "is gone from the target"),
        ({}, {"touched": "the replica was written"}, "the replica was written: the replica is reverted to"),
        ({"cbt_enabled": False, "snapshots": (SNAPSHOT,)}, {}, "cannot be enabled while the source has snapshots"),
        ({"cbt_supported": False}, {}, "CBT is not available"),
        ({"consolidation_needed": True}, {}, "needs disk consolidation"),
        ({"hardware": replace(machine().hardware, cpus=4)}, {}, "follows the source's: CPUs: 1 -> 4"),
        ({"hardware": replace(machine().hardware, network_adapters=ADAPTERS)}, {}, "adapters: none -> dr-net + lan"),
    ],
)
def test_drift_is_named(vm: dict[str, Any], state: dict[str, Any], words: str) -> None:
    plan = plan_vm(machine(**vm), JOB, known(**state))
    assert plan.conflict is None
    assert any(words in note for note in plan.notes), plan.notes


@pytest.mark.parametrize(
    ("vm", "can"),
    [
        ({"cbt_enabled": False}, True),
        ({"cbt_enabled": True}, False),
        ({"cbt_enabled": False, "snapshots": (SNAPSHOT,)}, False),
        ({"cbt_enabled": False, "cbt_supported": False}, False),
        ({"cbt_enabled": False, "hardware": replace(machine().hardware, version=6)}, False),
        ({"cbt_enabled": False, "hardware": replace(machine().hardware, version=7)}, True),
    ],
)
def test_cbt_is_enabled_only_where_it_takes_effect(vm: dict[str, Any], can: bool) -> None:
    assert plan_vm(machine(**vm), JOB, ReplicaKnowledge()).enable_cbt is can


@pytest.mark.parametrize(
    ("wish", "power", "tools", "expected"),
    [
        (Quiesce.PREFER, PowerState.ON, True, True),
        (Quiesce.PREFER, PowerState.ON, False, False),
        (Quiesce.PREFER, PowerState.OFF, False, False),
        (Quiesce.REQUIRE, PowerState.ON, True, True),
        (Quiesce.REQUIRE, PowerState.OFF, False, False),
        (Quiesce.NEVER, PowerState.ON, True, False),
    ],
)
def test_quiescing(wish: Quiesce, power: PowerState, tools: bool, expected: bool) -> None:
    plan = plan_vm(machine(power=power, tools_running=tools), replace(JOB, quiesce=wish), ReplicaKnowledge())
    assert plan.quiesce is expected
    assert plan.conflict is None


@pytest.mark.parametrize(("capacity", "kind", "copied"), [(2 * CAPACITY, COMPARE, True), (CAPACITY // 2, FULL, False)])
def test_a_resized_disk_is_replaced_with_what_an_unfinished_run_did_forgotten(
    capacity: int, kind: TransferKind, copied: bool
) -> None:
    plan = plan_vm(
        machine(disk(capacity=capacity)),
        replace(JOB, on_resize=OnResize.RESTART),
        known(unfinished=((2000, unfinished()),)),
    )
    assert plan.conflict is None
    assert (kind_of(plan), plan.disks[0].replace_disk) == ([kind], True)
    assert (plan.disks[0].grown_from is not None) is copied
    assert plan.disks[0].decision.carry == plan.disks[0].decision.dirty == ()


def test_a_touched_leaf_is_reverted_and_then_sure() -> None:
    plan = plan_vm(machine(), JOB, known(touched="written", unfinished=((2000, unfinished()),)))
    assert plan.revert_replica
    assert kind_of(plan) == [INCREMENTAL]
    assert plan.disks[0].decision.carry == ()


@pytest.mark.parametrize(
    ("lost", "expected"),
    [(("20250101T000000Z-000000",), INCREMENTAL), (("20270101T000000Z-000000",), COMPARE)],
    ids=["an older one", "the newest"],
)
def test_only_the_newest_lost_restore_point_makes_the_leaf_unsure(
    lost: tuple[str, ...], expected: TransferKind
) -> None:
    plan = plan_vm(machine(), JOB, known(lost_restore_points=tuple(point(one) for one in lost)))
    assert kind_of(plan) == [expected]


def test_no_restore_point_and_no_word_of_an_empty_disk_means_comparing() -> None:
    assert kind_of(plan_vm(machine(), JOB, known(restore_points=()))) == [COMPARE]
    record = replace(known().record, empty_disks=(2000,))  # type: ignore[type-var]
    assert kind_of(plan_vm(machine(), JOB, known(restore_points=(), record=record))) == [FULL]


def test_a_disk_that_the_run_will_make_is_empty_however_unsure_the_others_are() -> None:
    """As the run decides once it has made it; a plan that said otherwise would be wrong."""
    plan = plan_vm(machine(disk(), disk(2001)), JOB, known(lost_restore_points=(point("3"),)))
    assert kind_of(plan) == [COMPARE, FULL]
    assert [one.decision.compare_with_target for one in plan.disks] == [True, False]
    made = ReplicaDisk(2001, newly_made=True)
    assert plan.disks[1].decision == decide_disk(disk(2001), disk_facts(known(), 2001, made, reverted=False))


@pytest.mark.parametrize("reverted", [False, True])
@pytest.mark.parametrize("state", [{}, {"verification_failed": True}, {"unfinished": ((2000, unfinished()),)}])
def test_plan_and_run_go_by_the_same_facts(state: dict[str, Any], reverted: bool) -> None:
    state = state | ({"touched": "written by hand"} if reverted else {})
    facts = known(**state)
    assert expected_disk(facts, 2000, revert=reverted) == ReplicaDisk(2000)
    plan = plan_vm(machine(), JOB, facts)
    assert plan.revert_replica is reverted
    assert plan.disks[0].decision == decide_disk(disk(), disk_facts(facts, 2000, ReplicaDisk(2000), reverted=reverted))


# -- room at the target -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disks", "committed", "thin", "state", "expected"),
    [
        ((disk(thin=True),), None, None, ReplicaKnowledge(), CAPACITY),
        ((disk(thin=True),), 5 * GRAIN, None, ReplicaKnowledge(), 5 * GRAIN),
        ((disk(thin=True),), 5 * GRAIN, False, ReplicaKnowledge(), CAPACITY),
        ((disk(thin=False),), 5 * GRAIN, None, ReplicaKnowledge(), CAPACITY),
        ((disk(thin=False),), 5 * GRAIN, True, ReplicaKnowledge(), 5 * GRAIN),
        ((disk(thin=False), disk(2001, thin=True)), 9 * GRAIN, None, ReplicaKnowledge(), CAPACITY + 9 * GRAIN),
        ((disk(),), None, None, known(), 7 * GRAIN),
    ],
)
def test_space_needed(
    disks: tuple[Disk, ...], committed: int | None, thin: bool | None, state: ReplicaKnowledge, expected: int
) -> None:
    job = replace(JOB, thin=thin)
    assert space_needed(plan_vm(machine(*disks, committed=committed), job, state), job) == expected


@pytest.mark.parametrize(("free", "fits"), [(10, True), (9, False)])
def test_space_conflict(free: int, fits: bool) -> None:
    conflict = space_conflict(10, Datastore("datastore-1", "dr-ds", "VMFS", 100, free))
    assert (conflict is None) is fits
    if conflict is not None:
        assert conflict.kind is ConflictKind.NO_SPACE
        assert "dr-ds" in conflict.message
