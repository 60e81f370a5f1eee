"""Any field of any document, any bit of any binary file: never a wrong restore point, and a rebuild mends it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.damage import Replicated
from tests.support.kept_world import keep, wake
from tests.support.world import World, source
from vrepl.errors import VreplError
from vrepl.extents import GRAIN
from vrepl.report.model import Result
from vrepl.repository.documents import CHECKSUM, DamagedError, DocumentType, with_checksum
from vrepl.repository.intent import INTENT_DOCUMENT
from vrepl.repository.replica_folder import REPLICA_DOCUMENT, RESTORE_POINT_DOCUMENT
from vrepl.repository.store import REPOSITORY_DOCUMENT, RUN_DOCUMENT
from vrepl.transport import checkpoints

GRAINS = 40
SCENES = ("first run died", "settled", "second run died")
Place = tuple[str | int, ...]

ONLY_THE_REPOSITORY_KNOWS = {
    "repository.json": "created",
}
"""Document -> the part of it that nothing outside can contradict; docs/repository.md says the same."""


def documents_of(folder: Path) -> list[tuple[Path, DocumentType[Any]]]:
    [replica] = (folder / "replicas").iterdir()
    found: list[tuple[Path, DocumentType[Any]]] = [
        (folder / "repository.json", REPOSITORY_DOCUMENT),
        (replica / "replica.json", REPLICA_DOCUMENT),
        (replica / "intent.json", INTENT_DOCUMENT),
        *((path, RESTORE_POINT_DOCUMENT) for path in sorted(replica.glob("restore-points/*.json"))),
        *((path, RUN_DOCUMENT) for path in sorted(folder.glob("runs/*.json"))[:1]),
    ]
    return [(path, kind) for path, kind in found if path.exists()]


@pytest.fixture(scope="module", params=SCENES)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "LEAST_BYTES", 1)
        patch.setattr(checkpoints, "LEAST_SECONDS", 0.0)
        patch.setattr(checkpoints, "SHARE", 0)
        folder = tmp_path_factory.mktemp("scene")
        world = World(folder / "repository", retention=20)
        vm = world.source.add_vm("web-01", [GRAINS * GRAIN + 512, 6 * GRAIN])
        for grain in range(0, GRAINS, 2):
            world.source.guest_write(vm, 0, grain * GRAIN, bytes([grain + 1]) * GRAIN)
        if request.param != SCENES[0]:
            for seed in (31, 32):
                assert world.run_vm().result is Result.SUCCESS
                for index in (0, 1):
                    world.source.guest_write(vm, index, seed % 6 * GRAIN, bytes([seed]) * GRAIN)
            assert world.run_vm().result is Result.SUCCESS
        if request.param != SCENES[1]:
            for grain in range(3, GRAINS, 2):
                world.source.guest_write(vm, 0, grain * GRAIN, bytes([grain + 100]) * GRAIN)
            assert (
                world.run_until(lambda where: where.startswith("transfer") and int(where.split()[-1]) > 16 * GRAIN)
                is None
            )
        keep(world, folder / "kept")
        return request.param, folder / "kept"


def woken(kept: Path, folder: Path) -> Replicated:
    """The scene, and the guest at work since: back to what was there before, trimmed, new."""
    world = wake(kept, folder, retention=20)
    contents = world.restore_point_contents()
    vm = source(world)
    for grain, byte in ((5, 0), (7, 77), (20, 21)):
        world.source.guest_write(vm, 0, grain * GRAIN, bytes([byte]) * GRAIN)
    world.source.guest_write(vm, 1, 2 * GRAIN, b"n" * GRAIN)
    return Replicated(world, contents)


def leaves(value: Any, place: Place = ()) -> Iterator[Place]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*place, key))
    elif isinstance(value, list):
        yield place
        for index, inner in enumerate(value):
            yield from leaves(inner, (*place, index))
    else:
        yield place


def other_value(value: Any, draw: random.Random) -> Any:
    """Another value of the same type, mostly one that is near or looks right."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice([value + 1, max(value - 1, 0), value + GRAIN, 0, 2000, 2001, 2002, 1 << 40])
    if isinstance(value, str):
        words = ["ready", "failed-over", "full", "compare", "incremental", "crash", "quiesced", ""]
        if not value or draw.random() < 0.3:
            return draw.choice([word for word in words if word != value])
        at = draw.choice([index for index, sign in enumerate(value) if sign.isalnum()] or [0])
        return value[:at] + draw.choice("0123456789abcdef") + value[at + 1 :]
    if isinstance(value, list):
        return draw.choice([[], value[1:], [*value, *value[-1:]], value[::-1]])
    return draw.choice(["52 0001/9", "20260101T000004Z-000002", "", 7, True])


def replace_at(content: Any, place: Place, value: Any) -> None:
    for step in place[:-1]:
        content = content[step]
    content[place[-1]] = value


def value_at(content: Any, place: Place) -> Any:
    for step in place:
        content = content[step]
    return content


def follow_up(one: Replicated, before: set[str]) -> None:
    """Check, replicate, verify, rebuild, replicate: at no moment a wrong restore point, and right in the end."""
    attempts = (one.errors, one.run, one.verify)
    for attempt in attempts:
        with suppress(VreplError):
            attempt()
        one.points_are_right()
    try:
        one.rebuild()
    except VreplError as error:
        pytest.fail(f"rebuild: {error}")
    for seed in (0, 51):
        if seed:
            one.change(seed)
        report = one.run()
        assert report.result is Result.SUCCESS, report.error and report.error.message
        one.points_are_right()
    assert before <= set(one.world.restore_point_contents()), "a restore point was thrown away"
    [verified] = one.verification().vms
    # What digests are lost is said, as no agreement and no difference.
    assert verified.result is Result.SUCCESS or "digest" in str(verified.error)
    assert not any(disk.bad_extents for disk in verified.disks)


def try_document(
    scene: tuple[str, Path], folder: Path, seed: int, checksum: bool, only: tuple[str, str] = ("", "")
) -> None:
    """`only`: name of a document, and of a key of it."""
    draw = random.Random(seed)
    one = woken(scene[1], folder)
    before = set(one.original)
    path, kind = draw.choice([(path, kind) for path, kind in documents_of(folder) if path.name.startswith(only[0])])
    content = json.loads(path.read_text())
    places = [place for place in leaves(content) if place and place != (CHECKSUM,)]
    place = draw.choice([place for place in places if not only[1] or place[0] == only[1]])
    was = value_at(content, place)
    replace_at(content, place, other_value(was, draw))
    if draw.random() < 0.3 and path.name == "replica.json":
        keys = content["disk_keys"]
        key = draw.choice(sorted(keys))
        keys[str(int(key) + draw.choice([1, 16]))] = keys.pop(key)
        place = ("disk_keys", key)
    if json.dumps(content) == path.read_text():
        return
    if checksum and "format" not in place:
        if ONLY_THE_REPOSITORY_KNOWS.get(path.name) == place[0]:
            return
        content = with_checksum(content)
    path.write_text(json.dumps(content))
    try:
        valid = kind.read(path)
    except DamagedError:
        valid = None
    except VreplError:
        return  # of a newer format: left alone, and so are its restore points
    now = content["disk_keys"] if place[0] == "disk_keys" else value_at(content, place)
    note = f"{scene[0]}: {path.name} {place}: {was!r} -> {now!r}"
    try:
        follow_up(one, before)
    except BaseException as error:
        error.add_note(f"{note}{'' if valid else ' (not valid)'}, seed {seed}")
        raise


def try_bit(scene: tuple[str, Path], folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    one = woken(scene[1], folder)
    before = set(one.original)
    files = sorted([*folder.rglob("*.digests"), *folder.rglob("*.delta"), *folder.rglob("transfer.log")])
    path = draw.choice(files)
    data = bytearray(path.read_bytes())
    written = [at for at, byte in enumerate(data) if byte]
    at = draw.choice([draw.choice(written), draw.randrange(len(data))])
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    try:
        follow_up(one, before)
    except BaseException as error:
        error.add_note(f"{scene[0]}: byte {at} of {path.name}, seed {seed}")
        raise


@pytest.mark.slow
@pytest.mark.parametrize("checksum", [False, True], ids=["damaged", "checksum made right again"])
def test_any_field_of_any_document(
    scene: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory, checksum: bool
) -> None:
    for seed in range(25):
        try_document(scene, tmp_path_factory.mktemp("damaged") / "repository", seed, checksum)


INTENT_DISKS = ("intent.json", "disks")


@pytest.mark.slow
def test_any_field_of_what_an_intent_says_of_its_disks(
    scene: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if scene[0] == "settled":
        pytest.skip("no run is unfinished there")
    for seed in range(12):
        try_document(scene, tmp_path_factory.mktemp("damaged") / "repository", seed, True, INTENT_DISKS)


def skipped(disk: dict[str, Any]) -> None:
    disk["planned"] = disk["planned"][:-1]


def ahead(disk: dict[str, Any]) -> None:
    tracking, _, position = disk["change_id"].partition("/")
    disk["change_id"] = f"{tracking}/{int(position) + 4}"


def clean(disk: dict[str, Any]) -> None:
    disk["attempt"] += 1


@pytest.mark.parametrize("wrong", [skipped, ahead, clean])
@pytest.mark.slow
def test_an_intent_that_says_less_than_is_owed(
    scene: tuple[str, Path], tmp_path: Path, wrong: Callable[[dict[str, Any]], None]
) -> None:
    """As a bug would leave it, with the right checksum: source, replica and log know better."""
    if scene[0] == "settled":
        pytest.skip("no run is unfinished there")
    one = woken(scene[1], tmp_path / "repository")
    one.damage("intent.json", lambda content: wrong(content["disks"][0]), checksum=True)
    report = one.run()
    assert report.result is Result.SUCCESS
    one.points_are_right()
    assert one.verify() == [Result.SUCCESS]


@pytest.mark.slow
def test_any_bit_of_any_binary_file(scene: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    for seed in range(20):
        try_bit(scene, tmp_path_factory.mktemp("damaged") / "repository", seed)


@pytest.mark.long
@pytest.mark.parametrize("checksum", [False, True], ids=["damaged", "checksum made right again"])
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_any_field_of_any_document_at_length(
    scene: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory, checksum: bool, seed: int
) -> None:
    try_document(scene, tmp_path_factory.mktemp("damaged") / "repository", seed, checksum)


@pytest.mark.long
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_any_field_of_what_an_intent_says_of_its_disks_at_length(
    scene: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    if scene[0] != "settled":
        try_document(scene, tmp_path_factory.mktemp("damaged") / "repository", seed, True, INTENT_DISKS)


@pytest.mark.long
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_any_bit_of_any_binary_file_at_length(
    scene: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    try_bit(scene, tmp_path_factory.mktemp("damaged") / "repository", seed)
