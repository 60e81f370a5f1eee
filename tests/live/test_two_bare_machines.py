"""From two bare machines to a replicated VM with HotAdd at both ends, by the README's words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import far_proxies
from tests.support.pages import README, Block, blocks_of
from tests.support.typist import Typist
from tests.support.vrepl_runs import Runs
from vrepl_lab import machines
from vrepl_lab.lab import USER, Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

pytestmark = [
    pytest.mark.long,
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine"),
]
NAMES = ("prod-proxy-1", "dr-proxy-1")
VMS = tuple(VmSpec(name, disks=(DiskSpec(2 * MIB, content="random"),)) for name in ("web-01", "db-01"))


def chapter(heading: str) -> list[Block]:
    lines = README.read_text(encoding="utf-8").splitlines()
    begin = lines.index(heading) + 1
    end = next(number for number in range(begin, len(lines)) if lines[number].startswith("## "))
    return [block for block in blocks_of(README) if begin < block.line <= end]


def stand_ins(lab: Lab, folder: Path) -> dict[str, str]:
    """The README's own names, and those of the lab."""
    names = {"/etc/vrepl": str(folder), "/var/lib/vrepl": str(folder / "var"), "vrepl@vsphere.local": USER}
    for position, site in enumerate(("prod", "dr")):
        (folder / "secrets" / site).write_text(lab.password(site))
        (folder / "secrets" / site).chmod(0o600)
        shutil.copy(lab.folder / "ca.pem", folder / f"{site}-ca.pem")
        ports = f"port = {lab.sites[site].port}\nnfc_port = {lab.sites[site].nfc_port}"
        names[f'"vcenter.{site}.example.com"'] = f'"127.0.0.1"\n{ports}'
        address = machines.address_of(lab.folder, position)
        names[f'"root@proxy-{site}.example.com"'] = "\n".join(
            [
                f'"{site}-proxy-1"',
                f'ssh_config = "{machines.ssh_config(lab.folder)}"',
                f'address = "{address}"',
                f'listen = "{address}"',
                f'sysroot = "{lab.folder}/proxies/{site}-proxy-1/sysroot"',
            ]
        )
    names[f'"{folder}/secrets/dr" }}'] = f'"{folder}/secrets/dr" }}\nca_file = "{folder}/dr-ca.pem"'
    names["DR Network"] = "isolated"
    return names


def test_two_bare_machines_replicate_by_hotadd_at_both_ends(
    start_lab: Callable[[LabSpec], Lab], tmp_path: Path
) -> None:
    spec = replace(LabSpec.of_vms(*VMS, job_vms=["web-01", "db-01"]).with_machines(1, 1), vddk=False)
    lab = start_lab(spec)
    assert not any(list(machines.home_of(lab.folder, name).iterdir()) for name in NAMES), "they are bare"
    etc = tmp_path / "etc"
    (etc / "secrets").mkdir(parents=True)
    (etc / "var").mkdir(mode=0o700)
    typist = Typist(tmp_path, stand_ins(lab, etc), VREPL_CONFIG=str(etc / "vrepl.toml"))
    [steps] = [block for block in chapter("## Five steps to a scheduled job") if block.is_configuration]
    proxies, commands = chapter("## A machine at each site")
    text = "\n".join([*steps.lines, *proxies.lines])
    (etc / "vrepl.toml").write_text(typist.in_other_words(text))
    assert len(commands.commands) == 3
    for line in commands.commands:
        typist.type(line)
    vms = json.loads(typist.type("vrepl report --json"))["vms"]
    ends = [disk["transport"][side] for vm in vms for disk in vm["disks"] for side in ("source", "target")]
    assert [(end["engine"], end["mode"], end["proxy"]) for end in ends] == [
        ("own", "hotadd", "proxy-prod"), ("own", "hotadd", "proxy-dr"),
    ] * 2  # fmt: skip
    runs = Runs(lab, tmp_path)
    far_proxies.assert_equal_disks(runs, vms, 1)
    far_proxies.assert_nothing_is_left(runs, NAMES)
    assert not any(far_proxies.files_on(lab, name) for name in NAMES)
