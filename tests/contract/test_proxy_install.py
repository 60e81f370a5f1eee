"""Putting vrepl onto a machine: again, anew, twice at once, and under what runs there. A shell stands for ssh."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.support.other_pythons import VERSIONS, other_pythons
from vrepl.errors import MoverError
from vrepl.movers.build_id import build_id
from vrepl.proxy import install as installing
from vrepl.proxy.install import KEPT, STALE_SECONDS, bundle, install
from vrepl.proxy.ssh import INSTALLED, SshMachine

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Shell(SshMachine):
    """A machine whose home is a folder here."""

    home: Path = Path()

    def command(self, remote: str) -> list[str]:
        return ["env", f"HOME={self.home}", "sh", "-c", f"cd; exec sh -c {shlex.quote(remote)}"]

    @property
    def folder(self) -> Path:
        return self.home / INSTALLED

    def whole(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


bundled = cache(bundle)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setattr(installing, "bundle", bundled)
    home = tmp_path / "home"
    home.mkdir()
    return Shell("far", "far", home=home)


@pytest.mark.long
def test_two_at_once_do_not_meet(machine: Shell) -> None:
    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(lambda _: install(machine)["build"], range(3)))
    assert told == [build_id()] * 3
    assert machine.whole() == [build_id()]


@pytest.fixture
def user(machine: Shell) -> Iterator[subprocess.Popen[bytes]]:
    """Of what is installed: a process that has loaded a part of it, and loads more when it is told to."""
    install(machine)
    program = (
        "import vrepl.errors, sys; print('begun', flush=True); sys.stdin.readline(); import vrepl.transport.pipeline"
    )
    command = f'cd {INSTALLED}/{build_id()}; PYTHONPATH="$PWD/site" exec ./python -c {shlex.quote(program)}'
    process = subprocess.Popen(machine.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    yield process
    process.kill()
    process.communicate()


def test_what_runs_there_goes_on(machine: Shell, user: subprocess.Popen[bytes]) -> None:
    """A run is under way, and somebody installs again: that changes nothing."""
    assert install(machine)["build"] == build_id()
    user.communicate(b"go on\n")
    assert user.returncode == 0
    assert machine.whole() == [build_id()]
    assert machine.folder.stat().st_mode & 0o077 == 0


@pytest.mark.long
def test_an_update_leaves_the_last_ones_and_takes_away_what_is_old(
    machine: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of another vrepl may be under way, and another installation."""
    machine.folder.mkdir(parents=True)
    (machine.folder / "not-ours").mkdir()
    now = time.time()
    for position, name in enumerate(["a" * 32, "b" * 32, "c" * 32, "d" * 32, "e" * 32 + ".part", "f" * 32 + ".part"]):
        (machine.folder / name).mkdir()
        os.utime(machine.folder / name, (now, now - STALE_SECONDS - 100 + position))
    os.utime(machine.folder / ("f" * 32 + ".part"), (now, now))
    install(machine)
    left = machine.whole()
    assert [name for name in left if "." not in name and name != "not-ours"] == sorted(["c" * 32, "d" * 32, build_id()])
    assert KEPT == 3
    assert [name for name in left if "." in name] == ["f" * 32 + ".part"]
    assert "not-ours" in left


@pytest.mark.long
def test_a_broken_off_one_harms_nothing(machine: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    install(machine)
    monkeypatch.setattr(installing, "bundle", lambda *, with_libraries: bundled(with_libraries=with_libraries)[:5000])
    with pytest.raises(MoverError):
        install(machine)
    monkeypatch.setattr(installing, "bundle", bundled)
    assert install(machine)["build"] == build_id()


def test_a_machine_without_a_python_that_suits_is_told_of(machine: Shell) -> None:
    wrong = Shell("far", "far", python="/no/such/python", home=machine.home)
    with pytest.raises(MoverError, match=r"has no Python from 3\.11 on") as caught:
        install(wrong)
    assert "[proxies.far] python" in (caught.value.hint or "")


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS)
def test_another_python_gets_libraries_of_its_own(machine: Shell, version: str) -> None:
    if version not in other_pythons():
        pytest.skip(f"this machine has no Python {version} beside the one that runs the tests")
    other = Shell("far", "far", python=other_pythons()[version], home=machine.home)
    told = install(other)
    assert told["build"] == build_id()
    assert str(told["python"]).startswith(f"{version}.")
    assert told["compression"] is True
