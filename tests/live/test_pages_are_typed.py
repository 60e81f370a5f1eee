"""What the pages of docs/ say to type is typed, in their order, in a fresh folder, against a lab.

docs/failover.md has a test of its own, and so has the README: theirs is the order that matters most.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pages import PAGES, ROOT, Block, blocks_of
from tests.support.typist import Typist
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

ELSEWHERE = {"README.md", "docs/failover.md"}
LAST = "docs/uninstall.md"
VMS = tuple(VmSpec(name, disks=(DiskSpec(2 * MIB, content="random"),)) for name in ("web-01", "db-01"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def typed_of(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.commands and not block.not_run]


TYPED = [page for page in PAGES if typed_of(page) and name_of(page) not in ELSEWHERE]
TYPED.sort(key=lambda page: name_of(page) == LAST)


@pytest.fixture(scope="module")
def site(start_shared_lab: Callable[[LabSpec], Lab], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Where a job `web` has run once."""
    lab = start_shared_lab(LabSpec.of_vms(*VMS, job_vms=["web-01", "db-01"]))
    config = lab.config_file
    config.write_text(config.read_text().replace("[jobs.demo]", "[jobs.web]"))
    reader(lab, tmp_path_factory.mktemp("first")).type("vrepl replicate web --quiet")
    return lab


def reader(lab: Lab, folder: Path) -> Typist:
    """Somebody at the folder of the configuration, whose lab is where labs are if nobody says where."""
    (folder / "vrepl.toml").write_text(lab.config_file.read_text())
    (folder / "vrepl.toml").chmod(0o600)
    state = folder / "state" / "vrepl"
    state.mkdir(parents=True)
    (state / "lab").symlink_to(lab.folder)
    return Typist(folder, {"/etc/vrepl/vrepl.toml": "vrepl.toml", "/var/lib/vrepl": str(folder)})


@pytest.mark.slow
@pytest.mark.parametrize("page", TYPED, ids=name_of)
def test_what_the_page_says_to_type_works(page: Path, site: Lab, tmp_path: Path) -> None:
    typist = reader(site, tmp_path)
    lines = [line for block in typed_of(page) for line in block.commands]
    if "vrepl config init" in lines:
        (tmp_path / "vrepl.toml").unlink()
    try:
        for line in lines:
            said = typist.type(line)
            if "--json" in line:
                json.loads(said)
    finally:
        site.set("faults=none")
        if (tmp_path / "mylab" / "lab.json").exists():
            typist.type("vrepl lab down --dir mylab")
