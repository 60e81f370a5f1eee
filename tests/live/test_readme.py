"""What the README says to type is typed: the demo, and the five steps to a scheduled job."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pages import README, Block, blocks_of
from tests.support.typist import Typist
from vrepl_lab.lab import USER, Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

VMS = tuple(VmSpec(name, disks=(DiskSpec(2 * MIB, content="random"),)) for name in ("web-01", "db-01"))


def typed_between(begin: str, end: str) -> list[Block]:
    """Blocks between two headings, without those that say that they are not run."""
    lines = README.read_text(encoding="utf-8").splitlines()
    chapter = range(lines.index(begin) + 1, lines.index(end) + 1)
    return [block for block in blocks_of(README) if block.line in chapter and not block.not_run]


@pytest.mark.slow
@pytest.mark.lab
def test_the_demo_by_hand(tmp_path: Path) -> None:
    """Line by line, in a shell; what a newcomer asks next is answered from the same lab."""
    if os.environ.get("VREPL_NO_LAB") == "1":
        pytest.skip("VREPL_NO_LAB=1")
    [demo] = typed_between("## Try it", "## Five steps to a scheduled job")
    *work, down = demo.commands
    assert len(work) == 7
    typist = Typist(tmp_path, VREPL_CONFIG="mylab/vrepl.toml")
    try:
        outputs = [typist.type(line) for line in work]
        assert outputs[-1].count("\n20") == 2, "two restore points"
        status = json.loads(typist.type("vrepl status --json"))
        assert [vm["last_result"] for vm in status["vms"]] == ["success"] * 3
        typist.type("vrepl check demo")
        typist.type("vrepl report --html page.html")
        typist.type("vrepl diagnose --offline")
        typist.type("vrepl replicas remove app-01 --yes")
    finally:
        typist.type(down)


@pytest.mark.slow
def test_the_five_steps(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    """From the empty folders of the first step to a job as cron runs it, without VDDK; names alone are replaced."""
    lab = start_lab(LabSpec.of_vms(*VMS, job_vms=["web-01", "db-01"]))
    etc, var = tmp_path / "etc", tmp_path / "var"
    names = {"/etc/vrepl": str(etc), "/var/lib/vrepl": str(var), "vrepl@vsphere.local": USER, "DR Network": "isolated"}
    (etc / "secrets").mkdir(parents=True)
    var.mkdir(mode=0o700)
    for site in ("prod", "dr"):
        shutil.copy(lab.folder / "ca.pem", etc / f"{site}-ca.pem")
        (etc / "secrets" / site).write_text(lab.password(site))
        (etc / "secrets" / site).chmod(0o600)
        ports = f"port = {lab.sites[site].port}\nnfc_port = {lab.sites[site].nfc_port}"
        names[f'"vcenter.{site}.example.com"'] = f'"127.0.0.1"\n{ports}'
    # Unkind labs have a second datacenter, with a datastore of the same name.
    names['"dr-vmfs-01"'] = '"dr-dc/dr-vmfs-01"'
    names[f'"{etc}/secrets/dr" }}'] = f'"{etc}/secrets/dr" }}\nca_file = "{etc}/dr-ca.pem"'
    typist = Typist(tmp_path, names, VREPL_CONFIG=str(etc / "vrepl.toml"))
    steps = typed_between("## Five steps to a scheduled job", "## A machine at each site")
    init, configuration, look_and_run, regularly = steps
    for line in init.commands:
        typist.type(line)
    (etc / "vrepl.toml").write_text(typist.in_other_words("\n".join(configuration.lines)))
    for line in [*look_and_run.commands, *regularly.commands]:
        typist.type(line)
    status = json.loads(typist.type("vrepl status --json"))
    assert {vm["name"]: vm["rpo_met"] for vm in status["vms"]} == {"web-01": True, "db-01": True}
    assert "success" in (var / "last-run.txt").read_text()
