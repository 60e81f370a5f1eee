"""A job whose VMs are selected: looked up at every run, in few calls; what is new, gone, or not found is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.world import World
from vrepl.config.load import parse, parse_selection
from vrepl.errors import ConfigError, NotFoundError, UsageError
from vrepl.extents import GRAIN
from vrepl.model import JobSettings
from vrepl.model.selection import Criteria, Selection
from vrepl.report.model import Result, RunReport

GOLD = Selection(Criteria(tags=("Backup/Gold",)), Criteria(names=("*-test",)))


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    for name, tags in (("web-01", ("Backup/Gold",)), ("web-02", ()), ("web-test", ("Backup/Gold",)), ("db-01", ())):
        world.source.add_vm(name, [2 * GRAIN]).tags = tags
    return world


def run(world: World, *vms: str, **changes: object) -> RunReport:
    job: JobSettings = replace(world.job, vms=vms, **changes)  # type: ignore[arg-type]
    return world.engine().replicate(job)


def names(report: RunReport) -> list[str]:
    return [vm.name for vm in report.vms]


def test_a_pattern_replicates_what_it_matches(world: World) -> None:
    report = run(world, "web-0*")
    assert (names(report), report.result) == (["web-01", "web-02"], Result.SUCCESS)
    assert report.new_vms == ["web-01", "web-02"]


def test_a_vm_that_is_tagged_later_is_in_the_next_run_and_one_that_is_no_longer_is_named(world: World) -> None:
    assert names(run(world, selection=GOLD)) == ["web-01"]
    for vm in world.source.vms.values():
        vm.tags = ("Backup/Gold",) if vm.name == "db-01" else ()
    report = run(world, selection=GOLD)
    assert (names(report), report.new_vms, report.vanished_vms) == (["db-01"], ["db-01"], ["web-01"])
    assert run(world, selection=GOLD).new_vms == []


def test_what_a_job_selects_takes_calls_that_do_not_grow_with_the_vms(world: World) -> None:
    for number in range(300):
        world.source.add_vm(f"other-{number}", [GRAIN])
    before = len(world.source.calls)
    world.engine().plan(replace(world.job, vms=(), selection=GOLD))
    assert len(world.source.calls) - before <= 8


def test_a_job_that_selects_nothing_fails_unless_that_is_allowed(world: World) -> None:
    with pytest.raises(NotFoundError, match="selects no VM"):
        run(world, "nothing-*")
    assert run(world, "nothing-*", allow_empty=True).vms == []


def test_a_name_that_is_missing_beside_a_pattern_fails_and_the_rest_runs(world: World) -> None:
    report = run(world, "web-9", "db-*")
    assert [(vm.name, vm.result) for vm in report.vms] == [("web-9", Result.FAILED), ("db-01", Result.SUCCESS)]


def test_a_vm_that_the_selection_does_not_find_today_cannot_be_asked_for(world: World) -> None:
    job = replace(world.job, vms=(), selection=GOLD)
    with pytest.raises(NotFoundError, match="does not select web-02 today"):
        world.engine().replicate(job, ["web-02"])
    assert names(world.engine().replicate(job, ["web-01"])) == ["web-01"]


def test_disks_that_a_job_skips_are_left_out_and_said(world: World) -> None:
    world.source.add_vm("big-01", [2 * GRAIN, 4 * GRAIN])
    [vm] = run(world, "big-01", skip_disks={"big-*": (1,)}).vms
    assert vm.result is Result.SUCCESS, vm.error
    assert [disk.index for disk in vm.disks] == [0]
    assert any("the job skips it" in note for note in vm.notes)


CONFIG = """
[sites.a]
server = "a"
user = "u"
password = { file = "/p" }
[sites.b]
server = "b"
user = "u"
password = { file = "/p" }
[repository]
path = "/r"
[defaults]
source = "a"
target = "b"
target_datastore = "ds"
rpo = "1h"
"""


def test_defaults_are_of_every_job_that_does_not_say_otherwise(tmp_path: Path) -> None:
    text = CONFIG + '[jobs.gold]\nselect = { tags = ["Backup/Gold"] }\n[jobs.web]\nvms = ["web-*"]\nrpo = "5m"\n'
    config = parse(text, "vrepl.toml", tmp_path)
    assert (config.jobs["gold"].rpo, config.jobs["web"].rpo) == (3600.0, 300.0)
    assert config.jobs["gold"].settings("gold").selection.wanted.tags == ("Backup/Gold",)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("[jobs.x]\n", "names no VM"),
        ('[jobs.x]\nselect = { tags = ["Gold"] }\n', "tags"),
        ('[jobs.x]\nselect = { colour = ["red"] }\n', "colour"),
        ('[jobs.x]\nvms = ["web-*"]\nreplica_name = "copy"\n', "the job has several VMs"),
    ],
)
def test_a_selection_that_cannot_be_is_a_mistake_of_the_configuration(job: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(CONFIG + job, "vrepl.toml", tmp_path)
    assert any(said in problem for problem in caught.value.problems)


def test_a_selection_is_written_on_the_command_line_as_in_the_file() -> None:
    found = parse_selection('tags = ["Backup/Gold"], exclude = { names = ["*-test"] }')
    assert found == GOLD
    with pytest.raises(UsageError, match="no valid TOML"):
        parse_selection("tags =")
    with pytest.raises(UsageError, match="colour"):
        parse_selection('colour = "red"')
