"""What docs/failover.md says to type when the site is gone is typed, in its order, with the site gone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import plain_api
from tests.support.pages import ROOT, blocks_of
from tests.support.typist import Typist
from tests.support.vrepl_runs import Runs
from vrepl_lab.lab import USER, Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

PAGE = (Path(__file__).parents[2] / "docs" / "failover.md").read_text(encoding="utf-8")
VMS = tuple(VmSpec(name, disks=(DiskSpec(2 * MIB, content="random"),)) for name in ("web-01", "db-01"))


def chapter(title: str) -> str:
    return PAGE[PAGE.index(f"## {title}\n") :].split("\n## ", 1)[0]


def block(text: str, begins: str) -> list[str]:
    """The indented lines that begin so."""
    return [line.strip() for line in text.splitlines() if line.startswith(f"    {begins}")]


def toml(text: str, begins: str) -> str:
    """The indented block that begins with this table."""
    found = re.search(rf"^    \[{re.escape(begins)}\]\n(?:(?:    .*)?\n)+", text, re.M)
    assert found is not None
    return found[0].replace("\n    ", "\n").strip()


@pytest.mark.slow
def test_what_the_page_says_to_type_is_enough(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    """Only the words that stand for the reader's own vCenter are replaced: its address and the user's name."""
    lab = start_lab(LabSpec.of_vms(*VMS, job_vms=["web-01", "db-01"]))
    lab.set("dr.guest=*,boot_ms=0,ports=443", "dr.isolated_reachable=yes")
    lab.config_file.write_text(f"{lab.config_file.read_text()}\n{toml(chapter('Plans'), 'plans.site')}\n")
    assert Runs(lab, tmp_path).cli("replicate", "demo").returncode == 0
    address = f"127.0.0.1:{lab.sites['dr'].port}"
    (tmp_path / "dr-password").write_text(lab.password("dr"))
    (tmp_path / "dr-password").chmod(0o600)
    shutil.copy(lab.folder / "ca.pem", tmp_path / "dr-ca.pem")
    wrapper = tmp_path / "bin" / "vrepl"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m vrepl "$@"\n')
    wrapper.chmod(0o700)
    environment = {**os.environ, "PATH": f"{wrapper.parent}:{os.environ['PATH']}"}

    def shell(line: str) -> str:
        line = line.replace("vc-dr.example.com", address).replace("administrator@vsphere.local", USER)
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def running() -> set[str]:
        with plain_api.session(lab, "dr") as instance:
            names = [f"{vm.name}-replica" for vm in VMS]
            return {name for name in names if plain_api.vm_named(instance, name).runtime.powerState == "poweredOn"}

    assert lab.stop_site("prod")
    shutil.rmtree(lab.folder / "repository")
    lab.config_file.unlink()

    gone, plans, weekday = (chapter(title) for title in ("The site is gone", "Plans", "Try it any weekday"))
    text = toml(gone, "sites.dr").replace('"vc-dr.example.com"', f'"127.0.0.1"\nport = {lab.sites["dr"].port}')
    (tmp_path / "vrepl.toml").write_text(text.replace("administrator@vsphere.local", USER))
    (tmp_path / "vrepl.toml").chmod(0o600)

    *looks, first, rest, undo, commit, bare = block(gone, "vrepl ")
    for line in looks:
        assert shell(line)
    tests = block(weekday, "vrepl ")
    assert len(tests) == 4
    for line in tests:
        shell(line)
    rows = json.loads(shell("vrepl replicas --json"))["replicas"]
    assert {row["source"]["name"]: row["last_test"]["passed"] for row in rows} == {"web-01": True, "db-01": True}
    *by_plan, undo_all = block(plans, "vrepl ")
    for line in by_plan:
        shell(line)
    assert running() == {"db-01-replica", "web-01-replica"}
    shell(undo_all)
    assert running() == set()
    shell(first)
    assert running() == {"db-01-replica"}
    shell(rest)
    assert running() == {"db-01-replica", "web-01-replica"}
    shell(undo)
    assert running() == {"db-01-replica"}
    (tmp_path / "vrepl.toml").unlink()
    shell(bare)
    assert running() == {"db-01-replica", "web-01-replica"}
    (tmp_path / "vrepl.toml").write_text(text.replace("administrator@vsphere.local", USER))
    (tmp_path / "vrepl.toml").chmod(0o600)
    shell(commit)
    assert running() == {"db-01-replica", "web-01-replica"}


@pytest.mark.long
def test_a_move_and_the_ways_home_are_typed(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    """Every other command of the page, with the answer to its question given beforehand; both sites are there."""
    lab = start_lab(LabSpec.of_vms(*VMS, job_vms=["web-01", "db-01"]))
    for site in ("prod", "dr"):
        lab.set(f"{site}.guest=*,boot_ms=0,shutdown_ms=0")
    typist = Typist(tmp_path, {"prod-02": "prod-vmfs-02"}, VREPL_CONFIG=str(lab.config_file))

    def runs(site: str, name: str) -> bool:
        with plain_api.session(lab, site) as instance:
            return bool(plain_api.vm_named(instance, name).runtime.powerState == "poweredOn")

    planned, with_a_limit = block(chapter("While the source still lives"), "vrepl ")
    start, commit, undo, anew = block(chapter("Coming home"), "vrepl ")
    typist.type("vrepl replicate demo --quiet")
    typist.type(f"{planned} --yes")
    assert (runs("prod", "web-01"), runs("dr", "web-01-replica")) == (False, True)
    typist.type(f"{start} --yes")
    assert (runs("prod", "web-01"), runs("dr", "web-01-replica")) == (True, False)
    typist.type(f"{undo} --yes")
    assert (runs("prod", "web-01"), runs("dr", "web-01-replica")) == (False, True)
    typist.type(f"{start} --yes")
    typist.type(f"{commit} --yes")
    assert (runs("prod", "web-01"), runs("dr", "web-01-replica")) == (True, False)
    typist.type("vrepl replicate demo --quiet")
    typist.type(f"{with_a_limit} --yes")
    assert runs("dr", "web-01-replica")
    with plain_api.session(lab, "prod") as instance:
        original = plain_api.vm_named(instance, "web-01")
        plain_api.wait(original.PowerOffVM_Task())
        plain_api.wait(original.Destroy_Task())
    typist.type(f"{anew} --yes")
    assert (runs("prod", "web-01"), runs("dr", "web-01-replica")) == (True, False)


def test_no_other_chapter_of_the_page_has_commands() -> None:
    """The tests above take all commands of these, however many there are; one in another chapter would go untyped."""
    chapters = ("The site is gone", "While the source still lives", "Plans", "Try it any weekday", "Coming home")
    typed = [line for title in chapters for line in block(chapter(title), "vrepl ")]
    page = [line for one in blocks_of(ROOT / "docs" / "failover.md") for line in one.commands]
    assert sorted(page) == sorted(re.split(r" {2,}", line)[0] for line in typed)
