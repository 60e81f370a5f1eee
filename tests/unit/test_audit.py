"""Change tracking that lies in silence is caught: at once by `verify --source`, and by what runs read by themselves."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.world import World, folder_of, source
from vrepl.extents import GRAIN, Extent, subtract, total
from vrepl.model import TransferKind
from vrepl.planner import audit as planner
from vrepl.planner.audit import AuditBook, DiskAudit, after_part, due_part, last_audited
from vrepl.report.model import Result, RunReport, VmReport
from vrepl.report.verification import VmVerification
from vrepl.repository.audit_book import read_audit_book
from vrepl.repository.check import Severity, check
from vrepl.repository.store import Repository
from vrepl.transport.hooks import SimulatedKill

GRAINS = 40
CAPACITY = GRAINS * GRAIN + 512
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


# -- what is due ------------------------------------------------------------------------------------------------------


@given(
    grains=st.integers(1, 5000),
    gaps=st.lists(st.floats(0.0, 40.0), min_size=1, max_size=60),
    least=st.integers(1, 100),
)
def test_the_whole_disk_is_read_within_the_period(grains: int, gaps: list[float], least: int) -> None:
    """However the runs fall, as long as one comes: by then all that lies a period back has been read."""
    capacity = grains * GRAIN - 512
    period = 10 * DAY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "LEAST", least * GRAIN)
        audit, now = DiskAudit(capacity, START), START
        reads: list[tuple[dt.datetime, list[Extent]]] = []
        for number, gap in enumerate(gaps):
            now += gap * DAY
            part = due_part(audit, period, now)
            assert part == sorted(part)
            assert total(part) <= capacity
            reads.append((now, part))
            audit = after_part(audit, part, period, now, f"point-{number}")
            assert audit.paid <= now
            unread = total(subtract([Extent(0, capacity)], [extent for _, one in reads for extent in one]))
            if now - START > period + 2 * max(gaps) * DAY:
                assert unread == 0
        assert total([Extent(one.offset, one.length) for one in audit.parts]) <= capacity


def test_little_is_left_to_a_later_run_and_much_is_bounded() -> None:
    large = DiskAudit(1 << 44, START)
    assert due_part(large, 30 * DAY, START + dt.timedelta(seconds=1)) == []
    assert due_part(large, 30 * DAY, START + 60 * DAY) == [Extent(0, planner.MOST)]
    assert due_part(large, 30 * DAY, START - DAY) == [], "a clock that went back makes nothing due"
    small = DiskAudit(CAPACITY, START)
    assert due_part(small, 30 * DAY, START + 29 * DAY) == []
    assert due_part(small, 30 * DAY, START + 30 * DAY) == [Extent(0, CAPACITY)]


def test_what_was_audited_when_is_remembered() -> None:
    audit = DiskAudit(10 * GRAIN, START)
    audit = after_part(audit, [Extent(0, 6 * GRAIN)], DAY, START, "a")
    audit = after_part(audit, [Extent(0, 2 * GRAIN), Extent(6 * GRAIN, 4 * GRAIN)], DAY, START, "b")
    assert audit.rounds == 1
    order = ["0", "a", "b", "c"]
    assert last_audited(audit, [Extent(GRAIN, GRAIN)], order) == "b"
    assert last_audited(audit, [Extent(GRAIN, 3 * GRAIN)], order) == "a"
    assert last_audited(audit, [Extent(GRAIN, 3 * GRAIN)], ["b", "c"]) is None
    assert last_audited(None, [Extent(0, GRAIN)], order) is None


# -- what runs read by themselves -------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Four restore points, a day apart, of a job that audits the disk once in ten days."""
    monkeypatch.setattr(planner, "LEAST", 4 * GRAIN)
    world = World(tmp_path / "repository", retention=20)
    world.job = replace(world.job, audit=10 * DAY)
    vm = world.source.add_vm("web-01", [CAPACITY])
    for grain in range(GRAINS):
        world.source.guest_write(vm, 0, grain * GRAIN, bytes([grain + 1]) * GRAIN)
    for number in range(4):
        assert run(world).result is Result.SUCCESS
        world.source.guest_write(vm, 0, 30 * GRAIN, bytes([number + 100]) * GRAIN)
    return world


def run(world: World) -> VmReport:
    report = run_report(world)
    return report.vms[0]


def run_report(world: World) -> RunReport:
    world.clock.now += DAY
    return world.run()


def miss(world: World, grain: int, byte: int = 250) -> None:
    world.source.cbt_misses = lambda index, offset: True
    world.source.guest_write(source(world), 0, grain * GRAIN, bytes([byte]) * GRAIN)
    world.source.cbt_misses = lambda index, offset: False


def wrong_points(world: World, truth: bytes) -> set[str]:
    return {name for name, [content] in world.restore_point_contents().items() if content != truth}


def equal(world: World) -> bool:
    return world.replica().disks[0].disk.content() == source(world).disks[0].disk.content()


@pytest.mark.parametrize("grain", [0, 17, 39])
@pytest.mark.slow
def test_a_missed_change_is_found_within_the_runs_that_the_arithmetic_says(world: World, grain: int) -> None:
    miss(world, grain)
    for _ in range(11):  # a tenth of the disk each day, and a day for the rounding
        report = run_report(world)
        [vm] = report.vms
        assert vm.result is Result.SUCCESS
        if vm.alarm:
            break
        assert report.exit_code == 0
    else:
        pytest.fail("not found within the period")
    assert vm.audit is not None
    assert vm.audit.bytes_missed == GRAIN
    assert report.exit_code == 3
    assert report.result is Result.PARTIAL
    assert RunReport.from_json(report.to_json()).exit_code == 3
    assert [disk.kind for disk in vm.disks] == [TransferKind.COMPARE]
    assert equal(world), "the run that found it compared the whole disk"
    assert any("change tracking had missed" in note for note in vm.notes)

    folder = folder_of(world)
    points = [point.id for point in folder.restore_points()]
    wrong = {
        name
        for name, [content] in world.restore_point_contents().items()
        if content[grain * GRAIN : (grain + 1) * GRAIN] != bytes([250]) * GRAIN and name >= points[4]
    }
    doubtful = {name for name in points if folder.doubt(name) is not None}
    wrong.discard(points[-1])
    assert wrong <= doubtful
    assert doubtful, "those since the grain was last read"
    assert set(vm.audit.doubtful) == doubtful
    assert points[-1] not in doubtful
    assert any(one.severity is Severity.WARNING for one in check(Repository.open(world.folder)))
    report = run_report(world)
    assert report.exit_code == 0
    assert [disk.kind for disk in report.vms[0].disks] == [TransferKind.INCREMENTAL]


@pytest.mark.slow
def test_points_from_before_the_grain_was_last_audited_are_not_doubted(world: World) -> None:
    for _ in range(11):
        run(world)
    sound = {point.id for point in folder_of(world).restore_points()}
    miss(world, 5)
    for _ in range(11):
        if run(world).alarm:
            break
    folder = folder_of(world)
    doubtful = {point.id for point in folder.restore_points() if folder.doubt(point.id) is not None}
    assert doubtful
    assert len(doubtful & sound) <= 10, "what an audit has found right since stays beyond doubt"
    assert min(sound) not in doubtful


def test_points_before_the_grain_was_read_are_not_doubted(world: World) -> None:
    """Grain 30 was read by the last run; that one restore point is right, and those before hold older bytes rightly."""
    assert run(world).result is Result.SUCCESS
    last = folder_of(world).restore_points()[-1].id
    miss(world, 30)
    for _ in range(11):
        if run(world).alarm:
            break
    folder = folder_of(world)
    doubtful = {point.id for point in folder.restore_points() if folder.doubt(point.id) is not None}
    assert doubtful
    assert min(doubtful) > last


def test_a_run_that_dies_after_the_alarm_leaves_the_next_one_to_compare(world: World) -> None:
    miss(world, 0)
    for _ in range(12):
        world.clock.now += DAY
        died = world.run_until(lambda where: "transfer" in where and bool(folder_of(world).doubt(_newest(world))))
        if died is None:
            break
    else:
        pytest.fail("no alarm")
    report = run(world)
    assert report.result is Result.SUCCESS
    assert [disk.kind for disk in report.disks] == [TransferKind.COMPARE]
    assert equal(world)


def _newest(world: World) -> str:
    return folder_of(world).restore_points()[-1].id


@pytest.mark.slow
def test_an_alarm_looks_for_what_else_was_missed(world: World) -> None:
    """The older lie lies where the audit comes by later: the points that it made wrong are doubtful all the same."""
    for _ in range(8):
        run(world)  # the audit begins its disk anew
    miss(world, 38)
    run(world)
    miss(world, 20)
    for _ in range(11):
        report = run(world)
        if report.alarm:
            break
    assert report.audit is not None
    assert report.audit.bytes_missed == 2 * GRAIN
    assert any(f"{2 * GRAIN} bytes" in note for note in report.notes)
    assert equal(world)
    folder = folder_of(world)
    truth = {20: source(world).disks[0].disk.content()[20 * GRAIN], 38: 250}
    missed_38 = {
        point.id
        for point in folder.restore_points()[12:-1]
        if world.restore_point_contents()[point.id][0][38 * GRAIN] != truth[38]
    }
    assert missed_38
    assert all(folder.doubt(name) is not None for name in missed_38)


@pytest.mark.slow
def test_what_a_guest_gave_back_is_no_alarm_and_is_settled(world: World) -> None:
    world.source.cbt_misses = lambda index, offset: True
    world.source.guest_unmap(source(world), 0, Extent(3 * GRAIN, 2 * GRAIN))
    world.source.cbt_misses = lambda index, offset: False
    zeroed = 0
    for _ in range(11):
        report = run_report(world)
        assert report.exit_code == 0
        zeroed += report.vms[0].audit.bytes_zeroed if report.vms[0].audit else 0
    assert zeroed == 2 * GRAIN
    assert equal(world)


@pytest.mark.slow
def test_grains_without_a_sure_digest_are_read_and_recorded_not_judged(world: World) -> None:
    folder = folder_of(world)
    [base] = (folder.path / "disks" / "2000").glob("base*.digests")
    data = bytearray(base.read_bytes())
    data[4096 + 100] ^= 1
    base.write_bytes(data)
    miss(world, 7)
    recorded = 0
    for _ in range(11):
        report = run_report(world)
        assert report.exit_code == 0, "what nothing is known of accuses nobody"
        recorded += report.vms[0].audit.bytes_recorded if report.vms[0].audit else 0
    assert recorded >= GRAIN
    assert equal(world)
    assert world.engine().verify(Repository.open(world.folder).replicas()).exit_code == 0


@pytest.mark.slow
def test_an_audit_that_is_off_reads_nothing(world: World) -> None:
    world.job = replace(world.job, audit=None)
    miss(world, 7)
    for _ in range(12):
        assert run(world).audit is None
    assert not equal(world)


def test_a_damaged_book_begins_anew_and_says_so(world: World) -> None:
    for _ in range(3):
        run(world)
    path = folder_of(world).path / "audit.json"
    path.write_text(path.read_text().replace('"position": ', '"position": 1'))
    for _ in range(3):
        report = run(world)
        assert report.result is Result.SUCCESS
    assert any("the audit begins anew" in note for note in world.events.notes)
    book, damaged = read_audit_book(folder_of(world).path)
    assert damaged is None
    assert isinstance(book, AuditBook)


# -- verify --source --------------------------------------------------------------------------------------------------


def verify_source(world: World, sample: float = 1.0) -> VmVerification:
    engine = world.engine()
    [vm] = engine.verify_source(folder_of(world), world.job, sample=sample).vms
    assert world.our_source_snapshots() == []
    assert [one.access for one in world.source.vms.values()] == [None]
    return vm


def test_verify_source_catches_a_missed_change_at_once(world: World) -> None:
    world.job = replace(world.job, audit=None)
    assert verify_source(world).result is Result.SUCCESS
    miss(world, 9)
    world.source.guest_write(source(world), 0, 10 * GRAIN, b"told" * 16384)
    assert world.engine().verify(Repository.open(world.folder).replicas()).exit_code == 0, "that does not see it"
    assert run(world).result is Result.SUCCESS
    found = verify_source(world)
    assert found.result is Result.FAILED
    assert found.error is not None
    assert "change tracking missed changes" in found.error.message
    assert found.error.exit_code == 1
    assert found.disks[0].bad_extents == [(9 * GRAIN, GRAIN)]
    folder = folder_of(world)
    doubtful = [point.id for point in folder.restore_points() if folder.doubt(point.id) is not None]
    assert doubtful == [folder.restore_points()[-1].id], "the one before was verified against its source"
    report = run(world)
    assert [disk.kind for disk in report.disks] == [TransferKind.COMPARE]
    assert equal(world)
    assert verify_source(world).result is Result.SUCCESS


def test_a_sample_reads_a_share_and_finds_a_share(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    capacity = 64 * 16 * GRAIN
    world.source.add_vm("web-01", [capacity])
    for at in range(0, capacity, 16 * GRAIN):
        world.source.guest_write(source(world), 0, at, b"x" * GRAIN)
    assert run(world).result is Result.SUCCESS
    found = verify_source(world, sample=0.25)
    assert found.result is Result.SUCCESS
    assert found.disks[0].bytes_read == 16 * GRAIN
    for at in range(0, capacity, 16 * GRAIN):
        miss(world, at // GRAIN)
    assert len(verify_source(world, sample=0.25).disks[0].bad_extents) == 16


def test_verify_source_tells_what_it_did_not_judge(world: World) -> None:
    world.source.cbt_misses = lambda index, offset: True
    world.source.guest_unmap(source(world), 0, Extent(3 * GRAIN, 2 * GRAIN))
    [base] = (folder_of(world).path / "disks" / "2000").glob("base*.digests")
    found = verify_source(world)
    assert found.result is Result.SUCCESS
    assert found.disks[0].bytes_zeroed == 2 * GRAIN
    base.write_bytes(base.read_bytes()[:5000] + b"?" + base.read_bytes()[5001:])
    found = verify_source(world)
    assert found.result is Result.SUCCESS
    assert found.disks[0].bytes_not_judged > 0


def test_what_changed_since_is_neither_judged_nor_taken_for_audited(world: World) -> None:
    world.source.guest_write(source(world), 0, 25 * GRAIN, b"told" * 16384)
    found = verify_source(world)
    assert found.result is Result.SUCCESS
    assert found.disks[0].bytes_changed == 2 * GRAIN, "and grain 30, which the last run left behind"
    assert found.disks[0].not_judged_extents == [(25 * GRAIN, GRAIN), (30 * GRAIN, GRAIN)]
    json = found.to_json()["disks"][0]
    assert json["not_judged_extents"][0] == {"offset": 25 * GRAIN, "length": GRAIN}
    audit = read_audit_book(folder_of(world).path)[0].disks[2000]
    newest = folder_of(world).restore_points()[-1].id
    audited = [Extent(part.offset, part.length) for part in audit.parts if part.restore_point_id == newest]
    assert subtract([Extent(0, CAPACITY)], audited) == [Extent(25 * GRAIN, GRAIN), Extent(30 * GRAIN, GRAIN)]
    assert not due_part(audit, 10 * DAY, world.clock.now), "the whole pass counts for the audit within runs"


def test_verify_source_says_where_change_tracking_tells_nothing(world: World) -> None:
    world.source.reset_cbt(source(world), 0)
    found = verify_source(world)
    assert found.result is Result.SKIPPED
    assert found.error is not None
    assert "does not say what" in found.error.message


@pytest.mark.slow
def test_a_verification_that_dies_at_the_source_leaves_nothing_for_good(world: World) -> None:
    for at in range(40):
        moments = iter(range(200))
        world.kill_at = lambda where, at=at, moments=moments: next(moments) == at  # type: ignore[misc]
        try:
            verify_source(world)
        except (SimulatedKill, AssertionError):
            pass
        finally:
            world.kill_at = lambda where: False
            world.dead = False
    assert run(world).result is Result.SUCCESS
    assert world.our_source_snapshots() == []
    assert [one.access for one in world.source.vms.values()] == [None]


# -- found by the audit's arithmetic: how far it is -------------------------------------------------------------------


def test_the_book_says_how_far_it_is(world: World) -> None:
    for _ in range(5):
        run(world)
    audit = read_audit_book(folder_of(world).path)[0].disks[2000]
    assert 0 < audit.percent < 100 or audit.rounds
