"""Documents that are damaged and still parse: named, never believed, and mended from what the replica knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.damage import Replicated
from tests.support.kept_world import wake
from tests.support.world import World
from vrepl.extents import GRAIN
from vrepl.report.model import Result
from vrepl.repository.check import check
from vrepl.repository.store import Repository

KEPT = Path(__file__).parents[1] / "fixtures" / "repository-format-1"
"""Made by the vrepl that wrote format 1, over a memory world: three runs, and the same with a fourth that died."""

Content = dict[str, Any]
EDITS: dict[str, tuple[str, Callable[[Content], None]]] = {}
"""Name -> document (a pattern below the replica's folder; the last of several) and how it is damaged."""


def edit(name: str, document: str) -> Callable[[Callable[[Content], None]], None]:
    def note(function: Callable[[Content], None]) -> None:
        EDITS[name] = (document, function)

    return note


def other_digit(uuid: str) -> str:
    """The same but for its last digit. It has to differ: replicas get a random UUID."""
    return uuid[:-1] + ("7" if uuid[-1] != "7" else "8")


@edit("change ID of the newest restore point", "restore-points/*.json")
def _(content: Content) -> None:
    disk = content["restore_point"]["disks"][0]
    tracking, position = disk["change_id"].split("/")
    disk["change_id"] = f"{tracking}/{int(position) + 1}"


@edit("two disks of the source on one of the replica", "replica.json")
def _(content: Content) -> None:
    content["disk_keys"]["2001"] = content["disk_keys"]["2000"]


@edit("a digit of source_instance_uuid", "replica.json")
def _(content: Content) -> None:
    content["source_instance_uuid"] = other_digit(content["source_instance_uuid"])


@edit("a digit of target_instance_uuid", "replica.json")
def _(content: Content) -> None:
    content["target_instance_uuid"] = other_digit(content["target_instance_uuid"])


@pytest.fixture
def replicated(tmp_path: Path) -> Replicated:
    world = World(tmp_path / "repository", retention=5)
    vm = world.source.add_vm("web-01", [8 * GRAIN + 512, 6 * GRAIN])
    for grain in range(0, 8, 2):
        world.source.guest_write(vm, 0, grain * GRAIN, bytes([grain + 1]) * GRAIN)
    one = Replicated(world, {})
    assert one.run().result is Result.SUCCESS
    one.points_are_right()
    for seed in (11, 12):
        one.change(seed)
        assert one.run().result is Result.SUCCESS
        one.points_are_right()
    return one


@pytest.mark.parametrize("checksum", [False, True], ids=["damaged", "checksum made right again"])
@pytest.mark.parametrize("name", EDITS)
def test_damage_that_parses_is_named_and_rebuilt(replicated: Replicated, name: str, checksum: bool) -> None:
    document, how = EDITS[name]
    replicated.change(13)
    path = replicated.damage(document, how, checksum=checksum)
    before = set(replicated.world.restore_point_contents())
    report = replicated.run()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert f"{path} is damaged" in report.error.message
    assert "repository rebuild" in (report.error.hint or "")
    assert set(replicated.world.restore_point_contents()) == before, "nothing was sealed, and nothing removed"
    replicated.points_are_right()
    if not checksum:
        assert replicated.errors() == [str(path.relative_to(replicated.world.folder))]

    [rebuilt] = replicated.rebuild()
    assert not rebuilt.problem
    assert rebuilt.mended == (str(path),)
    report = replicated.run()
    assert report.result is Result.SUCCESS, report.error
    assert before < set(replicated.world.restore_point_contents()), "no restore point was lost"
    replicated.points_are_right()
    assert replicated.verify() == [Result.SUCCESS]
    assert replicated.errors() == []


# -- format 1 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["settled", "unfinished"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Replicated:
    world = wake(KEPT / request.param, tmp_path / "repository", retention=5)
    contents = {name: [disk.content() for disk in disks] for name, disks in disks_of(world).items()}
    return Replicated(world, contents)


def disks_of(world: World) -> dict[str, list[Any]]:
    return world.restore_point_contents(lambda disk: disk)


def formats(folder: Path) -> set[int]:
    """Of the replica's documents, and of the repository's own."""
    paths = [folder / "repository.json", *folder.glob("replicas/*/*.json"), *folder.glob("replicas/*/*/*.json")]
    return {json.loads(path.read_text())["format"] for path in paths}


def test_a_format_1_repository_is_upgraded_in_place_by_its_next_run(kept: Replicated) -> None:
    folder = kept.world.folder
    assert formats(folder) == {1}
    assert not kept.errors()
    assert any("older format" in one.message for one in check(Repository.open(folder)))
    before = {path: path.read_bytes() for path in folder.rglob("*.digests")}
    assert kept.run().result is Result.SUCCESS
    kept.points_are_right()
    assert formats(folder) == {2}
    assert not any("older format" in one.message for one in check(Repository.open(folder)))
    assert {path: path.read_bytes() for path in folder.rglob("*.digests")} == before, "no digest was lost"
    kept.change(14)
    report = kept.run()
    assert report.result is Result.SUCCESS
    assert {disk.kind.value for disk in report.disks} == {"incremental"}
    kept.points_are_right()
    assert kept.verify() == [Result.SUCCESS]
    assert len(Repository.open(folder).runs()) >= 5, "what runs before the upgrade told is still there"


@pytest.mark.parametrize("name", EDITS)
def test_a_damaged_format_1_repository_is_not_upgraded(kept: Replicated, name: str) -> None:
    document, how = EDITS[name]
    kept.change(14)
    before = set(disks_of(kept.world))
    path = kept.damage(document, how, checksum=False)
    text = path.read_text()
    report = kept.run()
    assert report.result is Result.FAILED
    assert f"{path} is damaged" in report.error.message
    assert path.read_text() == text
    kept.points_are_right()
    kept.rebuild()
    report = kept.run()
    assert report.result is Result.SUCCESS, report.error
    assert before < set(disks_of(kept.world))
    kept.points_are_right()
    assert formats(kept.world.folder) == {2}


def test_a_document_that_says_format_1_and_has_a_checksum_is_damaged(replicated: Replicated) -> None:
    path = replicated.damage("replica.json", lambda content: content.update(format=1), checksum=False)
    assert f"{path} is damaged: it says format 1" in replicated.run().error.message
    path = replicated.damage("replica.json", lambda content: content.update(format=3), checksum=False)
    assert f"{path} is damaged: its checksum" in replicated.run().error.message
