"""Promises of the lists: which replica a name means, and the rows that scripts read."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from vrepl.cli.replicas import state_in_words
from vrepl.errors import NotFoundError
from vrepl.model import (
    Consistency,
    Disk,
    DiskPoint,
    Hardware,
    PowerState,
    ReplicaRecord,
    ReplicaState,
    RestorePoint,
    Snapshot,
    TransferKind,
    VirtualMachine,
)
from vrepl.model.failover import FailoverRecord
from vrepl.report.listing import find_replica, replica_row, restore_point_row, run_row, vm_row
from vrepl.repository.failover import save_failover
from vrepl.repository.replica_folder import ReplicaFolder, Verification
from vrepl.repository.store import Repository, replica_id

NOW = dt.datetime(2025, 3, 1, 22, 0, tzinfo=dt.UTC)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open(tmp_path / "repository", create=True)


def replica(repository: Repository, name: str, uuid: str, site: str = "prod") -> ReplicaFolder:
    return repository.create_replica(
        ReplicaRecord(replica_id(site, uuid), site, uuid, name, "dr", f"t-{uuid}", f"{name}-replica", "demo")
    )


def point(moved: int = 5) -> RestorePoint:
    disk = DiskPoint(2000, 0, "Hard disk 1", 1 << 30, "u", "[a] a.vmdk", "c/1", 2000, TransferKind.FULL, moved)
    return RestorePoint(
        "20250301T220000Z-abcdef", NOW, "run", "demo", Consistency.CRASH, "vrepl 20250301T220000Z-abcdef", None, (disk,)
    )


@pytest.mark.parametrize("name", ["web-01", "web-01-replica", "prod-uuid-1", "uuid-1"])
def test_a_replica_is_found_by_any_of_its_names(repository: Repository, name: str) -> None:
    replica(repository, "web-01", "uuid-1")
    replica(repository, "web-02", "uuid-2")
    assert find_replica(repository.replicas(), name).record.source_name == "web-01"


def test_a_name_that_means_two_asks_for_the_id(repository: Repository) -> None:
    replica(repository, "web-01", "uuid-1")
    replica(repository, "web-01", "uuid-2", site="other")
    with pytest.raises(NotFoundError, match="names 2 replicas") as caught:
        find_replica(repository.replicas(), "web-01")
    assert caught.value.hint == "name one by its id: other-uuid-2, prod-uuid-1"


def test_a_name_that_means_none_gets_a_near_one(repository: Repository) -> None:
    replica(repository, "web-01", "uuid-1")
    with pytest.raises(NotFoundError, match='did you mean "web-01"'):
        find_replica(repository.replicas(), "web01")


def test_a_replica_without_a_restore_point(repository: Repository) -> None:
    row = replica_row(replica(repository, "web-01", "uuid-1"))
    assert (row["restore_points"], row["last_restore_point"], row["running"]) == (0, None, False)


def test_a_replica_shows_its_newest_restore_point_and_whether_a_run_holds_it(repository: Repository) -> None:
    folder = replica(repository, "web-01", "uuid-1")
    with folder.lock():
        folder.add_restore_point(point())
        row = replica_row(folder)
    assert row["running"] is True
    assert row["last_restore_point"]["id"] == point().id
    assert row["source"] == {"site": "prod", "name": "web-01", "instance_uuid": "uuid-1"}


def test_a_restore_point_row() -> None:
    row = restore_point_row(point(), Verification(NOW, False, "Hard disk 1: 2 extents differ"))
    assert row["time"] == "2025-03-01T22:00:00+00:00"
    assert row["snapshot"] == "vrepl 20250301T220000Z-abcdef"
    assert (row["consistency"], row["bytes_moved"]) == ("crash", 5)
    assert row["verified"] == {
        "time": "2025-03-01T22:00:00+00:00",
        "good": False,
        "detail": "Hard disk 1: 2 extents differ",
    }
    assert restore_point_row(point(), None)["verified"] is None


def test_a_vm_row_says_which_disk_and_why() -> None:
    good = Disk(2000, 0, "Hard disk 1", "[a] a.vmdk", "[a] a.vmdk", 1 << 30, "u", "a")
    bad = Disk(2001, 1, "Hard disk 2", "[a] b.vmdk", "[a] b.vmdk", 1 << 30, "u", "a", mode="independent_persistent")
    vm = VirtualMachine(
        ref="vm-1",
        name="legacy",
        instance_uuid="i",
        bios_uuid="b",
        power=PowerState.ON,
        host="esx",
        datacenter="dc",
        folder_ref="f",
        hardware=Hardware(19, "other", "efi", False, 1, 1, 512),
        disks=(good, bad),
        snapshots=(Snapshot("s-1", "before the update", "", NOW, None),),
    )
    row = vm_row(vm)
    assert (row["replicable"], row["power"], row["snapshots"]) == (False, "poweredOn", ["before the update"])
    assert "disk 1 (Hard disk 2) is independent" in row["reason"]
    assert [disk["replicable"] for disk in row["disks"]] == [True, False]


def test_run_rows() -> None:
    head = {"id": "r2", "job": "demo", "started": "s", "finished": "f", "result": "partial", "bytes_read": 1}
    run: dict[str, Any] = {"run": head, "vms": [{"result": "success"}, {"result": "failed"}, {"result": "success"}]}
    row = run_row(run)
    assert row["vms"] == {"failed": 1, "success": 2}
    assert row["bytes_moved"] is None


def test_a_replica_tells_how_long_its_failover_lasts(repository: Repository) -> None:
    folder = replica(repository, "web-01", "uuid-1")
    assert replica_row(folder)["deadline"] is None
    record = FailoverRecord(
        repository.id, "prod", "uuid-1", "web-01", "t-uuid-1",
        state=ReplicaState.FAILED_OVER, deadline=NOW + dt.timedelta(hours=1),
    )  # fmt: skip
    save_failover(folder, record)
    row = replica_row(folder)
    assert (row["state"], row["deadline"]) == ("failed-over", "2025-03-01T23:00:00+00:00")
    assert state_in_words(row, NOW).startswith("failed-over until 2025-03-0")
    assert state_in_words(row, NOW + dt.timedelta(hours=2)) == "failed-over, to be undone by the next run"
