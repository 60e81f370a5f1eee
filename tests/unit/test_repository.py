"""The repository: documents, locks, restore points, seal and removal that may die anywhere, check and rebuild."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crash import dying
from vrepl.errors import LockedError, NotFoundError, RepositoryError
from vrepl.extents import GRAIN, Extent
from vrepl.model import (
    Consistency,
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
from vrepl.repository.check import Severity, check
from vrepl.repository.commit_record import (
    KEY_FORMAT,
    CommitRecord,
    ReplicaMark,
    commit_record_format,
    format_commit_record,
    parse_commit_record,
    read_mark,
)
from vrepl.repository.digest_sets import open_lookup
from vrepl.repository.documents import DamagedError, with_checksum
from vrepl.repository.intent import DiskIntent, Intent, Journal, PreparedAccess
from vrepl.repository.rebuild import FoundReplica, rebuild
from vrepl.repository.replica_folder import ReplicaFolder, Verification
from vrepl.repository.store import KEEP_RUNS, Repository, replica_id
from vrepl.repository.transferlog import TransferLogWriter

GRAINS = 300
CAPACITY = GRAINS * GRAIN
KEYS = (2000, 2016)
START = dt.datetime(2024, 3, 14, 12, 0, tzinfo=dt.UTC)
UUID = "50226f00-0000-0000-0000-00000000000a"

RECORD = ReplicaRecord(
    id=replica_id("prod", UUID),
    source_site="prod",
    source_instance_uuid=UUID,
    source_name="web-01",
    target_site="dr",
    target_instance_uuid="5022aaaa-0000-0000-0000-00000000000b",
    target_name="web-01-replica",
    job="nightly",
    disk_keys={2000: 2000, 2016: 2001},
)


def point(number: int, parent: str | None = None) -> RestorePoint:
    disks = tuple(
        DiskPoint(key, at, f"Hard disk {at + 1}", CAPACITY, "uuid", "[ds] a/a.vmdk", "52/7", key, TransferKind.FULL, 3)
        for at, key in enumerate(KEYS)
    )
    name = f"20240314T12{number:02}00Z-00000{number % 10}"
    time = START + dt.timedelta(minutes=number)
    return RestorePoint(name, time, f"run{number}", "nightly", Consistency.QUIESCED, f"vrepl {name}", parent, disks)


def digest(key: int, number: int) -> bytes:
    return b"D" + key.to_bytes(7, "big") + number.to_bytes(8, "big")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open(tmp_path / "repository")


@pytest.fixture
def folder(repository: Repository) -> ReplicaFolder:
    return repository.create_replica(RECORD)


def transfer(folder: ReplicaFolder, number: int, parent: RestorePoint | None) -> RestorePoint:
    """A run up to its seal: each disk gets grain `number` anew, the first run all of it."""
    sealed = point(number, parent.id if parent else None)
    disks = []
    for key in KEYS:
        planned = Extent(number * GRAIN, GRAIN) if parent else Extent(0, CAPACITY)
        disks.append(
            DiskIntent(
                key,
                TransferKind.INCREMENTAL if parent else TransferKind.FULL,
                CAPACITY,
                1,
                (planned,),
                "52/7",
                parent.id if parent else None,
                parent is None,
                (),
            )
        )
    folder.save_intent(Intent(sealed.run_id, sealed.id, "nightly", tuple(disks), Journal()))
    for key in KEYS:
        log = TransferLogWriter(folder.transfer_log(key), CAPACITY, 1)
        log.allow(CAPACITY)
        if parent is None:
            log.record_zeros([Extent(0, CAPACITY)])
        log.record([(number, digest(key, number))])
        log.close()
    return sealed


def run(folder: ReplicaFolder, number: int) -> RestorePoint:
    points = folder.restore_points()
    sealed = transfer(folder, number, points[-1] if points else None)
    folder.seal(sealed)
    return sealed


def known_grains(folder: ReplicaFolder, key: int, restore_point: RestorePoint) -> set[int] | None:
    """The grains that are not zero; None where the set is unknown."""
    lookup = open_lookup(folder.digest_files(key, restore_point.id), CAPACITY)
    try:
        if not lookup.known:
            return None
        found = set()
        for extent in lookup.not_zero(Extent(0, CAPACITY)):
            for grain in range(extent.offset // GRAIN, extent.end // GRAIN):
                assert lookup.digest_of(grain) == digest(key, grain)
                found.add(grain)
        return found
    finally:
        lookup.close()


# Opening


def test_a_new_repository_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "some" / "repository"
    old = os.umask(0)
    try:
        repository = Repository.open(path, clock=lambda: START, new_id=lambda: "abc123")
        folder = repository.create_replica(RECORD)
        run(folder, 1)
        with repository.job_lock("nightly"):
            pass
        repository.save_run("run1", {})
    finally:
        os.umask(old)
    assert repository.id == "abc123"
    content = json.loads((path / "repository.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{64}", content.pop("checksum"))
    assert content == {"format": 2, "id": "abc123", "created": "2024-03-14T12:00:00Z"}
    for directory, _, files in os.walk(path):
        assert Path(directory).stat().st_mode & 0o777 == 0o700, directory
        for name in files:
            assert (Path(directory) / name).stat().st_mode & 0o777 == 0o600, name
    assert Repository.open(path).id == "abc123"
    assert check(repository) == []


def test_a_newer_repository_is_refused_and_left_alone(repository: Repository) -> None:
    file = repository.path / "repository.json"
    file.write_text('{"format": 3, "something": "else"}')
    with pytest.raises(RepositoryError, match=r"repository\.json has format 3") as raised:
        Repository.open(repository.path)
    assert "newer vrepl" in (raised.value.hint or "")
    assert file.read_text() == '{"format": 3, "something": "else"}'


def test_what_is_no_repository_is_refused(tmp_path: Path, repository: Repository, folder: ReplicaFolder) -> None:
    with pytest.raises(RepositoryError, match="there is no repository"):
        Repository.open(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(RepositoryError, match="is no repository"):
        Repository.open(tmp_path / "photos")
    with pytest.raises(RepositoryError, match="is not a directory"):
        Repository.open(tmp_path / "photos" / "cat.jpg")
    (repository.path / "repository.json").unlink()
    with pytest.raises(RepositoryError, match="replicas but no repository") as raised:
        Repository.open(repository.path)
    assert "rebuild" in (raised.value.hint or "")


def test_two_that_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(Repository.open(tmp_path / "repository").id)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_dying_while_it_is_made_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    with dying() as steps:
        Repository.open(tmp_path / "count")
    for die_at in range(len(steps.made)):
        path = tmp_path / f"at{die_at}"
        with dying(die_at):
            Repository.open(path)
        assert Repository.open(path).id


@pytest.mark.parametrize(
    ("number", "hint"), [(30, "read-only"), (28, "free some space"), (13, "as that user"), (5, "medium")]
)
def test_what_the_system_refuses_names_the_path_and_what_to_do(
    repository: Repository, folder: ReplicaFolder, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    def failing(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    sealed = run(folder, 1)
    monkeypatch.setattr(os, "pwrite", failing)
    for action in (
        lambda: folder.save_record(RECORD),
        lambda: folder.save_intent(Intent("r", "p", "j")),
        lambda: folder.mark_verified(sealed.id, Verification(START, True)),
        lambda: repository.save_run("r", {}),
        repository.check_writable,
        lambda: Repository.open(repository.path.parent / "other"),
    ):
        with pytest.raises(RepositoryError) as raised:
            action()
        assert str(repository.path.parent) in raised.value.message
        assert hint in (raised.value.hint or "")
    monkeypatch.undo()
    assert folder.restore_points() == [sealed]
    assert check(repository) == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from vrepl.errors import RepositoryError
from vrepl.repository.store import Repository
repository = Repository.open(Path(sys.argv[1]), create=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
for action in (repository.check_writable, lambda: repository.save_run("big", {"text": "x" * 5000})):
    try:
        action()
    except RepositoryError as error:
        print(error.message, error.hint)
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(repository: Repository) -> None:
    repository.save_run("big", {"text": "old"})
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(repository.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count(str(repository.path)) == 2
    assert "ulimit" in done.stdout
    assert repository.run("big") == {"text": "old"}
    assert [path.name for path in (repository.path / "runs").iterdir()] == ["big.json"]


# Replicas and restore points


def test_a_record_comes_back(repository: Repository, folder: ReplicaFolder) -> None:
    found = repository.replica("prod", UUID)
    assert found is not None
    assert found.record == RECORD
    changed = dataclasses.replace(RECORD, state=ReplicaState.FAILED_OVER, target_name="renamed")
    found.save_record(changed)
    assert [one.record for one in repository.replicas()] == [changed]
    assert repository.replica("prod", "other") is None


@pytest.mark.parametrize("site", ["../x", "a/b", "", ".hidden", "x" * 300])
def test_no_name_leads_out_of_the_folder(repository: Repository, folder: ReplicaFolder, site: str) -> None:
    with pytest.raises(RepositoryError):
        repository.create_replica(dataclasses.replace(RECORD, source_site=site, id=replica_id(site, UUID)))
    with pytest.raises(RepositoryError):
        folder.restore_point(f"../{site}")
    with pytest.raises(RepositoryError):
        repository.run(f"../{site}")


def test_a_record_under_another_name_is_refused(repository: Repository) -> None:
    with pytest.raises(RepositoryError, match="must not call itself"):
        repository.create_replica(dataclasses.replace(RECORD, id="other"))


def test_a_replica_can_be_forgotten_even_when_that_dies(repository: Repository, folder: ReplicaFolder) -> None:
    run(folder, 1)
    with dying(1):
        repository.remove_replica("prod", UUID)
    assert repository.replicas() == []
    repository.remove_replica("prod", UUID)
    assert list((repository.path / "replicas").iterdir()) == []


def test_restore_points_are_oldest_first_whatever_their_names(folder: ReplicaFolder) -> None:
    points = [dataclasses.replace(point(number), id=f"x{9 - number}") for number in (3, 1, 2)]
    for one in points:
        folder.add_restore_point(one)
    assert folder.restore_points() == sorted(points, key=lambda one: one.time)


def test_verification_is_kept_with_the_restore_point(folder: ReplicaFolder) -> None:
    sealed = run(folder, 1)
    assert folder.verification(sealed.id) is None
    result = Verification(START, False, "3 grains differ")
    folder.mark_verified(sealed.id, result)
    assert folder.verification(sealed.id) == result
    assert folder.restore_point(sealed.id) == sealed
    with pytest.raises(RepositoryError, match="no restore point"):
        folder.mark_verified("other", result)


def test_three_runs_and_their_removal(repository: Repository, folder: ReplicaFolder) -> None:
    points = [run(folder, number) for number in (1, 2, 3)]
    for key in KEYS:
        assert [known_grains(folder, key, one) for one in points] == [{1}, {1, 2}, {1, 2, 3}]
    assert folder.intent() is None
    assert not list(folder.path.rglob("transfer.log"))
    folder.remove_restore_point(points[1].id)
    folder.remove_restore_point(points[1].id)
    folder.remove_restore_point(points[0].id)
    assert folder.restore_points() == points[2:]
    for key in KEYS:
        assert known_grains(folder, key, points[2]) == {1, 2, 3}
        assert sorted(path.name for path in (folder.path / "disks" / str(key)).iterdir()) == ["base.digests"]
    assert check(repository) == []
    folder.remove_restore_point(points[2].id)
    assert list((folder.path / "disks").iterdir()) == []


def test_a_seal_without_an_intent_only_adds_the_restore_point(folder: ReplicaFolder) -> None:
    folder.seal(point(1))
    assert folder.restore_points() == [point(1)]
    assert known_grains(folder, 2000, point(1)) is None


def test_a_seal_for_another_intent_leaves_that_alone(folder: ReplicaFolder) -> None:
    transfer(folder, 1, None)
    folder.seal(point(2))
    assert folder.intent() is not None
    assert len(list(folder.path.rglob("transfer.log"))) == 2


def test_giving_up_leaves_what_was_sealed(repository: Repository, folder: ReplicaFolder) -> None:
    first = run(folder, 1)
    transfer(folder, 2, first)
    folder.discard_logs()
    folder.clear_intent()
    assert known_grains(folder, 2000, first) == {1}
    assert not list(folder.path.rglob("transfer.log"))
    assert check(repository) == []


def steps_of(tmp_path: Path, folder: ReplicaFolder, action: str, argument: object) -> int:
    """How many steps the action takes, tried on a copy."""
    shutil.copytree(folder.path, tmp_path / "count" / folder.path.name)
    copy = ReplicaFolder.load(tmp_path / "count" / folder.path.name)
    assert copy is not None
    with dying() as steps:
        getattr(copy, action)(argument)
    return len(steps.made)


def copies(tmp_path: Path, folder: ReplicaFolder, count: int) -> Iterator[tuple[int, ReplicaFolder]]:
    for number in range(count):
        shutil.copytree(folder.path, tmp_path / f"copy{number}" / folder.path.name)
        copy = ReplicaFolder.load(tmp_path / f"copy{number}" / folder.path.name)
        assert copy is not None
        yield number, copy


@pytest.mark.slow
@pytest.mark.parametrize("tear", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_seal_that_dies_at_any_step_completes(tmp_path: Path, folder: ReplicaFolder, first: bool, tear: bool) -> None:
    before = None if first else run(folder, 1)
    sealed = transfer(folder, 2, before)
    expected = {2} if first else {1, 2}
    count = steps_of(tmp_path, folder, "seal", sealed)
    assert count > 20
    for die_at, copy in copies(tmp_path, folder, count):
        with dying(die_at, tear=tear):
            copy.seal(sealed)
        if before is not None:
            assert known_grains(copy, 2000, before) == {1}, die_at
        with copy.lock():
            # Once the restore point is there, the rest completes by itself.
            assert (copy.intent() is None) == (sealed in copy.restore_points())
            copy.seal(sealed)
            copy.mark_verified(sealed.id, Verification(START, True))
            copy.seal(sealed)
        assert copy.verification(sealed.id) == Verification(START, True), "sealed again, nothing is forgotten"
        assert copy.restore_points() == [*([before] if before else []), sealed]
        assert copy.intent() is None
        for key in KEYS:
            assert known_grains(copy, key, sealed) == expected, die_at
        assert not list(copy.path.rglob("*.new"))
        assert not list(copy.path.rglob("transfer.log"))


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.slow
def test_a_removal_that_is_killed_at_any_step_harms_no_other_and_completes(
    tmp_path: Path, folder: ReplicaFolder, which: int
) -> None:
    points = [run(folder, number) for number in (1, 2, 3)]
    sets = [{1}, {1, 2}, {1, 2, 3}]
    count = steps_of(tmp_path, folder, "remove_restore_point", points[which].id)
    for die_at, copy in copies(tmp_path, folder, count):
        with dying(die_at, tear=False):
            copy.remove_restore_point(points[which].id)
        for one, expected in zip(points, sets, strict=True):
            assert known_grains(copy, 2000, one) in (expected, None)
        with copy.lock():
            for at in {0, 1, 2} - {which}:
                assert known_grains(copy, 2000, points[at]) == sets[at], die_at
            copy.remove_restore_point(points[which].id)
        for at in {0, 1, 2} - {which}:
            assert [known_grains(copy, key, points[at]) for key in KEYS] == [sets[at]] * 2
        assert len(copy.restore_points()) == 2


def test_an_intent_that_holds_an_access_outlives_its_seal(folder: ReplicaFolder) -> None:
    sealed = transfer(folder, 1, None)
    intent = folder.intent()
    assert intent is not None
    held = Journal(prepared_for_access=(PreparedAccess("prod", "vm-1", "vrepl"),))
    folder.save_intent(dataclasses.replace(intent, journal=held))
    folder.add_restore_point(sealed)
    with folder.lock():
        assert folder.intent() is not None
        folder.save_intent(dataclasses.replace(intent, journal=Journal()))
    with folder.lock():
        assert folder.intent() is None


def test_a_damaged_or_newer_document_is_an_error_not_a_guess(folder: ReplicaFolder) -> None:
    sealed = run(folder, 1)
    path = folder.path / "restore-points" / f"{sealed.id}.json"
    text = path.read_text()
    path.write_text(text.replace('"quiesced"', '"crash"'))
    with pytest.raises(DamagedError, match="its checksum is not that of its content"):
        folder.restore_points()
    content = json.loads(text)
    content["restore_point"]["consistency"] = "perhaps"
    path.write_text(json.dumps(with_checksum(content)))
    with pytest.raises(DamagedError, match=r"is damaged: restore_point\.consistency"):
        folder.restore_points()
    path.write_text(json.dumps(with_checksum({**json.loads(text), "format": 9})))
    with pytest.raises(RepositoryError, match="has format 9"):
        folder.restore_points()
    path.write_text(text)
    path.rename(path.with_name("20240314T120900Z-000009.json"))
    with pytest.raises(DamagedError, match="under a wrong name"):
        folder.restore_points()


# Locks

HOLDER = """
import sys
from pathlib import Path
from vrepl.repository.store import Repository
repository = Repository.open(Path(sys.argv[1]), create=False)
with repository.job_lock("nightly"), repository.replicas()[0].lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(repository: Repository, folder: ReplicaFolder) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(repository.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@pytest.mark.slow
def test_a_lock_names_its_owner_and_dies_with_it(
    repository: Repository, folder: ReplicaFolder, holder: subprocess.Popen[str]
) -> None:
    assert folder.is_locked()
    assert repository.is_job_locked("nightly")
    for lock, what in ((folder.lock(), "the replica of web-01"), (repository.job_lock("nightly"), "job nightly")):
        with pytest.raises(LockedError, match=rf"{what}.*is locked by pid {holder.pid} on .*: -c ") as raised, lock:
            pass
        assert raised.value.exit_code == 11
    assert [one.held for one in repository.unlock()] == [True, True]
    assert [(one.severity, one.message) for one in check(repository)] == [
        (Severity.NOTE, "a run holds it; not checked")
    ]
    holder.kill()
    holder.wait()
    assert not folder.is_locked()
    stale = repository.locks()
    assert [(one.name, one.held) for one in stale] == [("job nightly", False), (f"replica {RECORD.id}", False)]
    assert str(holder.pid) in stale[0].owner
    assert [one.held for one in repository.unlock()] == [False, False]
    assert repository.locks() == []
    with folder.lock(), repository.job_lock("nightly"):
        assert folder.is_locked()
    assert repository.locks() == []


@pytest.mark.slow
def test_waiting_for_a_lock(folder: ReplicaFolder, holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    timer = threading.Timer(0.3, holder.stdin.close)
    timer.start()
    with folder.lock(wait_seconds=60):
        assert holder.wait(60) == 0
    timer.join()


def test_threads_exclude_each_other(folder: ReplicaFolder) -> None:
    with folder.lock():
        with pytest.raises(LockedError), folder.lock():
            pass
        assert folder.is_locked()


def test_the_lock_of_a_replica_that_was_forgotten_meanwhile(repository: Repository, folder: ReplicaFolder) -> None:
    repository.remove_replica("prod", UUID)
    with pytest.raises(NotFoundError, match="removed meanwhile"), folder.lock():
        pass


def test_any_job_name_has_a_lock_of_its_own(repository: Repository) -> None:
    with repository.job_lock("a/b"), repository.job_lock("a b"), repository.job_lock("ä"), repository.job_lock(".."):
        assert {lock.name for lock in repository.locks()} == {"job a b", "job a/b", "job ä", "job .."}
    assert {path.suffix for path in (repository.path / "jobs").iterdir()} == {".lock"}


# Runs


def test_run_reports_are_newest_first_and_bounded(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repository.runs() == []
    assert KEEP_RUNS >= 100
    monkeypatch.setattr("vrepl.repository.store.KEEP_RUNS", 3)
    for number in range(5):
        repository.save_run(f"run{number}", {"number": number})
        os.utime(repository.path / "runs" / f"run{number}.json", (number, number))
    assert [report["number"] for report in repository.runs()] == [4, 3, 2]
    assert [report["number"] for report in repository.runs(limit=1)] == [4]
    assert repository.run("run4") == {"number": 4}
    assert repository.run("run0") is None


# Check


def test_check_names_each_thing_that_is_wrong(repository: Repository, folder: ReplicaFolder) -> None:
    points = [run(folder, number) for number in (1, 2)]
    disk = folder.path / "disks" / "2000"
    (disk / f"{points[1].id}.delta").write_bytes(b"no delta")
    (folder.path / "disks" / "2016" / "orphan.delta").write_bytes(
        (folder.path / "disks" / "2016" / f"{points[1].id}.delta").read_bytes()
    )
    base = bytearray((folder.path / "disks" / "2016" / "base.digests").read_bytes())
    base[5000] ^= 1
    (folder.path / "disks" / "2016" / "base.digests").write_bytes(base)
    folder.save_intent(Intent("r", "p", "j"))
    (repository.path / "runs").mkdir()
    (repository.path / "runs" / "torn.json").write_text("{")
    (repository.path / "replicas" / "empty").mkdir()
    repository.path.chmod(0o755)
    found = {(one.severity, one.path.removeprefix(f"replicas/{RECORD.id}/")): one.message for one in check(repository)}
    assert found.keys() == {
        (Severity.WARNING, "."),
        (Severity.ERROR, "replicas/empty"),
        (Severity.NOTE, "intent.json"),
        (Severity.WARNING, f"disks/2000/{points[1].id}.delta"),
        (Severity.WARNING, "disks/2000"),
        (Severity.WARNING, "disks/2016/base.digests"),
        (Severity.WARNING, "disks/2016/orphan.delta"),
        (Severity.NOTE, "runs/torn.json"),
    }
    assert "1 of its pages are damaged" in found[Severity.WARNING, "disks/2016/base.digests"]


def test_check_finds_damaged_documents(repository: Repository, folder: ReplicaFolder) -> None:
    sealed = run(folder, 1)
    (folder.path / "restore-points" / f"{sealed.id}.json").write_text("{}")
    (folder.path / "intent.json").write_text("[]")
    assert {one.path.rsplit("/", 1)[1]: one.severity for one in check(repository) if one.severity == "error"} == {
        f"{sealed.id}.json": Severity.ERROR,
        "intent.json": Severity.ERROR,
    }
    (folder.path / "replica.json").write_text('{"format": 3}')
    assert [one.message.split("; ")[0].split(" has ")[1] for one in check(repository)] == ["format 3"]


# Commit records and rebuild


def description(restore_point: RestorePoint, repository: Repository, source: str = UUID) -> str:
    return format_commit_record(CommitRecord(repository.id, "prod", source, "web-01", restore_point))


def test_a_commit_record_comes_back_from_a_description(repository: Repository) -> None:
    text = description(point(1), repository)
    assert "\n" not in text
    assert text.isascii()
    record = parse_commit_record(f" {text}\n")
    assert record is not None
    assert record.restore_point == point(1)
    assert record.repository_id == repository.id


@pytest.mark.parametrize(
    "text",
    ["", "by hand", "{not json", "[1]", '{"a": 1}', '{"vrepl": "x"}', '{"vrepl": 1}', '{"vrepl": 0}', "{" * 5000],
)
def test_foreign_descriptions_are_passed_over(text: str) -> None:
    assert parse_commit_record(text) is None


def test_a_newer_commit_record_is_not_read_but_known(repository: Repository) -> None:
    text = description(point(1), repository).replace('"vrepl":1', '"vrepl":2')
    assert parse_commit_record(text) is None
    assert commit_record_format(text) == 2
    assert commit_record_format("something else") is None


def test_a_mark_comes_back_from_extra_config() -> None:
    mark = ReplicaMark("abc", "prod", UUID, "run1")
    assert read_mark(mark.to_extra_config() | {"other": "x"}) == mark
    assert all(key.startswith("vrepl.") for key in mark.to_extra_config())
    assert read_mark({}) is None
    assert read_mark(mark.to_extra_config() | {KEY_FORMAT: "3"}) is None
    assert read_mark(mark.to_extra_config() | {KEY_FORMAT: "x"}) is None


def replica_vm(
    repository_id: str, snapshots: list[tuple[str, str]], *, name: str = "web-01-replica", source: str = UUID
) -> VirtualMachine:
    return VirtualMachine(
        ref="vm-9",
        name=name,
        instance_uuid=RECORD.target_instance_uuid,
        bios_uuid="bios",
        power=PowerState.OFF,
        host="host-1",
        datacenter="dc",
        folder_ref="group-1",
        hardware=Hardware(19, "otherGuest64", "bios", False, 1, 1, 1024),
        disks=(),
        snapshots=tuple(
            Snapshot(f"snapshot-{number}", title, text, START, None) for number, (title, text) in enumerate(snapshots)
        ),
        extra_config=ReplicaMark(repository_id, "prod", source).to_extra_config(),
    )


def test_a_lost_repository_is_rebuilt_from_the_replicas_alone(repository: Repository, folder: ReplicaFolder) -> None:
    points = [run(folder, number) for number in (1, 2, 3)]
    texts = [("by hand", "before patching")] + [(one.snapshot_name, description(one, repository)) for one in points]
    found = [FoundReplica("dr", replica_vm(repository.id, texts))]
    lost = repository.id
    shutil.rmtree(repository.path)
    anew = Repository.open(repository.path)
    assert anew.id != lost
    [result] = rebuild(anew, found)
    assert (result.replica_id, result.restore_points, result.problem) == (RECORD.id, 3, "")
    assert anew.id == lost
    assert Repository.open(repository.path).id == lost
    rebuilt = anew.replica("prod", UUID)
    assert rebuilt is not None
    assert rebuilt.restore_points() == points
    assert rebuilt.record == dataclasses.replace(RECORD, disk_keys={2000: 2000, 2016: 2016})
    assert not rebuilt.digest_files(2000, points[-1].id).known
    # The next incremental run, and digests made by reading a disk.
    sealed = run(rebuilt, 4)
    lookup = open_lookup(rebuilt.digest_files(2000, sealed.id), CAPACITY)
    assert lookup.digest_of(4) == digest(2000, 4)
    assert lookup.digest_of(5) is None
    lookup.close()
    whole = ((grain, digest(2000, grain) if grain in {1, 2, 3} else bytes(16)) for grain in range(GRAINS))
    rebuilt.write_digests(2000, points[-1].id, CAPACITY, whole)
    assert known_grains(rebuilt, 2000, points[-1]) == {1, 2, 3}
    assert {one.severity for one in check(anew)} <= {Severity.WARNING}


def test_rebuild_completes_and_keeps_what_is_there(repository: Repository, folder: ReplicaFolder) -> None:
    first = run(folder, 1)
    folder.mark_verified(first.id, Verification(START, True))
    texts = [(one.snapshot_name, description(one, repository)) for one in (first, point(2, first.id))]
    rebuild(repository, [FoundReplica("dr", replica_vm(repository.id, texts))])
    assert folder.restore_points() == [first, point(2, first.id)]
    assert folder.verification(first.id) == Verification(START, True)
    assert folder.record == RECORD
    assert known_grains(folder, 2000, first) == {1}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}'])
@pytest.mark.parametrize("name", ["replica.json", "intent.json", "restore-points/{point}.json"])
def test_rebuild_makes_damaged_documents_anew_and_keeps_them(
    repository: Repository, folder: ReplicaFolder, name: str, content: str
) -> None:
    first = run(folder, 1)
    file = folder.path / name.format(point=first.id)
    file.write_text(content)
    found = [FoundReplica("dr", replica_vm(repository.id, [(first.snapshot_name, description(first, repository))]))]
    assert [(one.restore_points, one.problem) for one in rebuild(repository, found)] == [(1, "")]
    rebuilt = repository.replica("prod", UUID)
    assert rebuilt is not None
    with rebuilt.lock():
        assert rebuilt.record.target_instance_uuid == RECORD.target_instance_uuid
        assert rebuilt.restore_points() == [first]
        assert rebuilt.intent() is None
        assert known_grains(rebuilt, 2000, first) == {1}
    assert file.with_name(f"{file.name}.damaged").read_text() == content
    assert not any(one.severity is Severity.ERROR for one in check(repository))


def test_rebuild_leaves_a_newer_document_alone(repository: Repository, folder: ReplicaFolder) -> None:
    file = folder.path / "replica.json"
    file.write_text('{"format": 3}')
    with pytest.raises(RepositoryError, match="format 3"):
        rebuild(repository, [FoundReplica("dr", replica_vm(repository.id, []))])
    assert file.read_text() == '{"format": 3}'


def test_rebuild_after_runs_that_were_refused_for_want_of_it(tmp_path: Path) -> None:
    """Such a run makes a repository and a folder before it finds the replica's name taken."""
    anew = Repository.open(tmp_path / "anew")
    anew.create_replica(dataclasses.replace(RECORD, target_instance_uuid="", target_name="", disk_keys={}))
    [one] = rebuild(anew, [FoundReplica("dr", replica_vm("abcdef", []))])
    assert one.problem == ""
    assert anew.id == "abcdef"
    folder = anew.replica("prod", UUID)
    assert folder is not None
    assert folder.record.target_instance_uuid == RECORD.target_instance_uuid


@pytest.mark.parametrize("left", [None, "", '{"format": 2, "id": "0123", "created": "2024-03-14T12:00:00Z"}'])
def test_rebuild_makes_the_repositorys_own_document_anew(
    repository: Repository, folder: ReplicaFolder, left: str | None
) -> None:
    """It was damaged, or the whole was deleted in mid-run and made half anew by that run."""
    own, file = repository.id, repository.path / "repository.json"
    first = run(folder, 1)
    if left is None:
        shutil.rmtree(repository.path)
        folder.add_restore_point(first)
        repository.save_run("r", {})
    else:
        file.write_text(left)
    with pytest.raises(RepositoryError) as caught:
        Repository.open(repository.path)
    assert "repository rebuild" in str(caught.value.hint)
    mended = Repository.open(repository.path, mend=True)
    vm = replica_vm(own, [(first.snapshot_name, description(first, repository))])
    strangers = dataclasses.replace(replica_vm("strange", []), instance_uuid="other", name="other")
    strangers = dataclasses.replace(
        strangers, extra_config={**strangers.extra_config, "vrepl.source.instanceUuid": UUID[:-1] + "f"}
    )
    [one, other] = rebuild(mended, [FoundReplica("dr", vm), FoundReplica("dr", strangers)])
    assert (one.problem, other.problem) == ("", "belongs to repository strange")
    assert Repository.open(repository.path).id == own
    assert Repository.open(repository.path).replicas()[0].restore_points() == [first]
    assert not any(one.severity is Severity.ERROR for one in check(mended))


def test_rebuild_goes_into_no_folder_that_holds_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RepositoryError, match="holds other things"):
        Repository.open(tmp_path, mend=True)


def test_rebuild_takes_only_what_is_its_own(repository: Repository, folder: ReplicaFolder) -> None:
    other = "50226f00-0000-0000-0000-0000000000ff"
    foreign = FoundReplica("dr", replica_vm("ffffff", [], name="theirs", source=other))
    newer = replica_vm(repository.id, [], name="newer", source=other)
    newer = dataclasses.replace(newer, extra_config={**newer.extra_config, KEY_FORMAT: "7"})
    text = description(point(1), repository).replace('"vrepl":1', '"vrepl":3')
    newer_point = replica_vm(repository.id, [("s", text)], name="newer point", source=other)
    plain = dataclasses.replace(newer, name="plain", extra_config={})
    results = rebuild(repository, [foreign, *(FoundReplica("dr", vm) for vm in (newer, newer_point, plain))])
    assert [result.problem for result in results] == [
        "belongs to repository ffffff",
        "made by a newer vrepl (format 7)",
        "snapshot 's' was made by a newer vrepl",
        "no replica of vrepl's",
    ]
    assert [one.record for one in repository.replicas()] == [RECORD]
    [result] = rebuild(repository, [foreign], adopt=True)
    assert result.problem == ""
    assert repository.replica("prod", other) is not None


def test_a_cloned_replica_is_not_guessed_about(repository: Repository) -> None:
    texts = [("s", description(point(1), repository))]
    twins = [FoundReplica("dr", replica_vm(repository.id, texts, name=name)) for name in ("replica", "clone")]
    problem = "one of 2 VMs that bear the mark of this replica"
    assert [result.problem for result in rebuild(repository, twins)] == [problem, problem]
    assert repository.replicas() == []


def test_a_snapshot_of_another_source_is_no_restore_point_of_this_replica(repository: Repository) -> None:
    texts = [("mine", description(point(1), repository)), ("other", description(point(2), repository, source="other"))]
    [result] = rebuild(repository, [FoundReplica("dr", replica_vm(repository.id, texts))])
    assert result.restore_points == 1
