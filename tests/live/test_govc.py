"""govc, govmomi's own client, against the lab: for each command what vSphere does, and that the lab does it.

A row that the lab answers otherwise than vSphere says so in `differs`; docs/lab-internals.md lists these.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.other_clients import assert_no_panic, assert_written_down
from vrepl_lab.build import build_go_program
from vrepl_lab.errors import LabError
from vrepl_lab.lab import USER, Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

SOURCES = Path(__file__).parents[1] / "govc"
SPEC = LabSpec.of_vms(
    VmSpec("web-01", disks=(DiskSpec(2 * MIB, content="random"),), cpus=2),
    VmSpec("app-01", disks=(DiskSpec(MIB, content="random"),), power="poweredOff", tools="notRunning"),
)
DATASTORE = "-ds prod-vmfs-01"
POOL = "-pool prod-cluster/Resources"


@dataclass(frozen=True, slots=True)
class Row:
    """`out` is a pattern in what the command prints, `fails` one in the error that vSphere gives."""

    command: str
    out: str = ""
    fails: str = ""
    differs: str = ""


ROWS = [
    # the inventory
    Row("about", r"VMware vCenter Server 8\.0\.2"),
    Row("ls", "^/prod-dc/vm$"),
    Row("ls -l host", r"prod-cluster \(ClusterComputeResource\)"),
    Row("ls -i vm", "^VirtualMachine:vm-"),
    Row("find /prod-dc/vm -type m", "^/prod-dc/vm/web-01$"),
    Row("find /prod-dc/vm -type m -runtime.powerState poweredOff", r"\A/prod-dc/vm/app-01\Z"),
    Row("find / -type s", "prod-vmfs-02"),
    Row("datacenter.info", "Virtual Machines: +3"),
    Row("pool.info prod-cluster/Resources", "Name: +Resources"),
    Row("cluster.usage prod-cluster", "CPU capacity"),
    Row("vm.option.ls", "vmx-21"),
    Row("events -n 5", "logged in"),
    Row("session.ls", "vrepl"),
    Row("license.ls", "eval"),
    Row("role.ls", "NoAccess"),
    # one VM as it is
    Row("vm.info web-01", "CPU: +2 vCPU"),
    Row("vm.info -json web-01", '"instanceUuid"'),
    Row("vm.info -e app-01", "ExtraConfig"),
    Row("vm.info nobody", r"\A\Z"),
    Row("vm.ip web-01", r"^10\."),
    Row("vm.ip -wait 30s web-01", r"^10\."),
    Row("vm.ip -a -wait 30s web-01", r"10\."),
    Row("object.collect -s vm/web-01 guest.ipAddress", r"\A10\."),
    Row("object.collect -s vm/web-01 guest.toolsRunningStatus", "guestToolsRunning"),
    Row("object.collect -s vm/web-01 config.hardware.numCPU config.firmware", r"\A2\nefi"),
    Row("object.collect -json vm/web-01 layoutEx", '"diskExtent"'),
    Row("object.collect -s vm/web-01 snapshot", r"\A\Z"),
    Row("object.collect -s vm/web-01 runtime.powerState", "poweredOn"),
    Row("object.collect -s vm/web-01 no.such", fails="InvalidProperty"),
    Row("device.ls -vm web-01", "disk-1000-0 +VirtualDisk +2,048 KB"),
    Row("device.info -vm web-01 disk-1000-0", "Label: +Hard disk 1"),
    Row("device.info -vm web-01 'ethernet-*'", "Label: +Network adapter 1"),
    Row("device.info -vm web-01 'cdrom-*'", r"Label: +CD/DVD drive 1"),
    Row("device.info -vm web-01 'pvscsi-*'", r"Label: +SCSI controller 0\n +Summary: +VMware paravirtual SCSI"),
    # what a running VM refuses
    Row("vm.change -vm web-01 -c 4", fails="CPU hot plug is not supported"),
    Row("vm.change -vm web-01 -m 4096", fails="Memory hot plug is not supported"),
    Row("vm.change -vm web-01 -g otherGuest64", fails="in the current state"),
    Row("vm.power -on web-01", fails="in the current state"),
    Row("vm.unregister web-01", fails="in the current state"),
    Row("vm.change -vm web-01 -annotation 'a note'"),
    Row("object.collect -s vm/web-01 config.annotation", "a note"),
    # snapshots
    Row("snapshot.create -vm web-01 -m=false -d 'first one' one"),
    Row("snapshot.create -vm web-01 -m=false two"),
    Row("object.collect -s vm/web-01 snapshot.currentSnapshot", "VirtualMachineSnapshot:snapshot-"),
    Row("snapshot.tree -vm web-01 -c", r"one\n +two\n +\."),
    Row("snapshot.tree -vm web-01 -d", "first one"),
    Row("object.collect -json vm/web-01 layoutEx.snapshot", '"dataKey"'),
    Row("vm.disk.change -vm web-01 -disk.label 'Hard disk 1' -size 1G", fails="Hot-extend is currently supported only"),
    Row("snapshot.remove -vm web-01 nobody", fails="not found"),
    Row("snapshot.revert -vm web-01 one"),
    Row("object.collect -s vm/web-01 runtime.powerState", "poweredOff"),
    Row("vm.disk.change -vm web-01 -disk.label 'Hard disk 1' -size 1G", fails="Invalid operation for device"),
    Row("vm.power -on web-01", "Powering on"),
    Row("snapshot.remove -vm web-01 '*'"),
    Row("snapshot.tree -vm web-01", r"\A\Z"),
    # power
    Row("vm.power -suspend web-01", "Suspend "),
    Row("vm.power -on web-01", "Powering on"),
    Row("vm.power -reset web-01", "Reset"),
    Row("vm.ip -wait 30s web-01", r"^10\."),
    Row("vm.power -s web-01", "Shutdown guest"),
    Row("vm.power -on -wait=false app-01", "Powering on"),
    Row("vm.power -off -force app-01", "Powering off"),
    # reconfiguration
    Row("vm.change -vm app-01 -c 2 -m 1024 -e vrepl.a=b"),
    Row("vm.info -e app-01", r"vrepl\.a: +b"),
    Row("vm.disk.create -vm app-01 " + DATASTORE + " -name app-01/extra -size 10M", "Creating disk"),
    Row("device.info -vm app-01 disk-1000-1", r"Label: +Hard disk 2"),
    Row("vm.disk.change -vm app-01 -disk.label 'Hard disk 2' -size 20M"),
    Row("device.ls -vm app-01", "disk-1000-1 +VirtualDisk +20,480 KB"),
    Row("vm.disk.attach -vm app-01 " + DATASTORE + " -disk nothing.vmdk", fails="FileNotFound"),
    Row("device.remove -vm app-01 -keep disk-1000-1"),
    Row("datastore.ls " + DATASTORE + " app-01", r"^extra\.vmdk$"),
    Row("datastore.rm " + DATASTORE + " app-01/extra.vmdk"),
    Row("datastore.ls " + DATASTORE + " app-01/extra.vmdk", fails="not found"),
    Row("device.scsi.add -vm app-01 -type lsilogic-sas", "lsilogic-sas-1001"),
    Row("device.info -vm app-01 lsilogic-sas-1001", "Label: +SCSI controller 1"),
    Row("device.sata.add -vm app-01", "ahci-15000"),
    Row("device.cdrom.add -vm app-01", "cdrom-"),
    Row("device.usb.add -vm app-01", "usb-"),
    Row("device.floppy.add -vm app-01", "floppy-"),
    Row("device.serial.add -vm app-01", "serialport-"),
    Row("vm.network.add -vm app-01 -net isolated -net.adapter vmxnet3"),
    Row("device.info -vm app-01 ethernet-1", r"Label: +Network adapter 2\n +Summary: +isolated"),
    Row("vm.network.change -vm app-01 -net 'VM Network' ethernet-1"),
    Row("device.info -vm app-01 ethernet-1", "Summary: +VM Network"),
    Row("device.disconnect -vm app-01 ethernet-1"),
    Row("device.remove -vm app-01 ethernet-1 lsilogic-sas-1001"),
    Row("vm.upgrade -vm app-01"),
    # disks of no VM
    Row("datastore.info prod-vmfs-01", "Type: +VMFS"),
    Row("datastore.mkdir " + DATASTORE + " spare"),
    Row("datastore.disk.create " + DATASTORE + " -size 8M spare/free.vmdk", "Creating"),
    Row("datastore.disk.info " + DATASTORE + " spare/free.vmdk", "Name: +spare/free.vmdk"),
    Row("vm.disk.attach -vm web-01 " + DATASTORE + " -disk spare/free.vmdk -link=false"),
    Row("vm.power -on web-01", "Powering on"),
    Row("vm.disk.attach -vm app-01 " + DATASTORE + " -disk spare/free.vmdk -link=false"),
    Row("vm.power -on app-01", fails="Failed to lock the file|Cannot open the disk"),
    Row("datastore.rm " + DATASTORE + " spare/free.vmdk", fails="FileLocked|locked"),
    Row("vm.disk.attach -vm app-01 " + DATASTORE + " -disk app-01/app-01.vmdk -link=true"),
    Row("device.remove -vm app-01 -keep disk-1000-1"),
    Row("device.remove -vm web-01 disk-1000-1"),
    Row("datastore.ls " + DATASTORE + " spare", r"\A\Z"),
    # clones, templates, moves
    Row("vm.clone -vm app-01 " + DATASTORE + " -on=false full-01", "Cloning"),
    Row("vm.clone -vm app-01 " + DATASTORE + " -snapshot none -on=false no-01", fails="no snapshots for this VM"),
    Row("snapshot.create -vm app-01 base"),
    Row("vm.clone -vm app-01 " + DATASTORE + " -snapshot base -link -on=false linked-01", "Cloning"),
    Row("device.info -json -vm linked-01 'disk-*'", '"fileName": "\\[prod-vmfs-01\\] app-01/app-01.vmdk"'),
    Row("vm.migrate -ds prod-vmfs-02 linked-01", "OK"),
    Row("device.info -vm linked-01 'disk-*'", r"File: +\[prod-vmfs-02\] linked-01/"),
    Row("vm.destroy linked-01"),
    Row("snapshot.remove -vm app-01 base"),
    Row("vm.markastemplate full-01"),
    Row("vm.power -on full-01", fails="NotSupported"),
    Row("vm.markasvm " + POOL + " full-01"),
    Row("vm.unregister full-01"),
    Row("vm.register " + POOL + " " + DATASTORE + " full-01/full-01.vmx"),
    Row("vm.info full-01", "CPU: +2 vCPU"),
    Row("device.ls -vm full-01", "disk-1000-0"),
    Row(
        "vm.register " + POOL + " " + DATASTORE + " full-01/full-01.vmx", fails="AlreadyExists|already exists|Duplicate"
    ),
    Row("vm.register " + POOL + " " + DATASTORE + " none/none.vmx", fails="NotFound|not found"),
    Row("vm.rename app-01 app-02", fails="Usage"),
    Row("object.rename vm/app-01 app-02", "OK"),
    Row("folder.create vm/old"),
    Row("object.mv vm/app-02 vm/old", "OK"),
    Row("vm.destroy full-01"),
    Row("datastore.ls " + DATASTORE + " full-01", fails="not found"),
    Row("object.destroy vm/old", "OK"),
    Row("find /prod-dc/vm -type m -name 'app*'", r"\A\Z"),
    Row("datastore.ls " + DATASTORE + " app-01", fails="not found"),
    Row("vm.destroy web-01"),
    # known differences: what govcsim does not have
    Row("export.ovf -vm vrepl-proxy .", differs="there is no ExportVm (OVF export)"),
    Row("logs", differs="there are no logs of vCenter or host"),
    Row("storage.policy.ls", differs="there is no storage policy service"),
    Row("disk.ls", differs="there are no first class disks (vslm)"),
]


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    lab = start_shared_lab(SPEC)
    lab.set("nasty=off")  # hosts know the hardware of their time
    return lab


@pytest.fixture(scope="module")
def govc(vcenter: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], subprocess.CompletedProcess[str]]:
    try:
        program = build_go_program(SOURCES, say=lambda line: None)
    except LabError as error:
        if os.environ.get("VREPL_REQUIRE_LAB") == "1":
            raise
        pytest.skip(f"no govc: {error}")
    home = tmp_path_factory.mktemp("govc")
    site = vcenter.sites["prod"]
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "GOVC_DATACENTER": "prod-dc",
        "GOVC_URL": f"https://127.0.0.1:{site.port}/sdk",
        "GOVC_USERNAME": USER,
        "GOVC_PASSWORD": vcenter.password("prod"),
        "GOVC_TLS_CA_CERTS": str(vcenter.folder / "ca.pem"),
        "GOVC_PERSIST_SESSION": "true",
    }

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *shlex.split(command)],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.slow
def test_govc_finds_vsphere(vcenter: Lab, govc: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """One after the other: each row starts from what those before it left."""
    wrong = []
    for row in ROWS:
        done = govc(row.command)
        text = done.stdout.strip()
        if row.differs:
            as_vsphere = done.returncode != 0  # the day it works, the row is to be written anew
        elif row.fails:
            as_vsphere = done.returncode != 0 and re.search(row.fails, done.stdout + done.stderr) is not None
        else:
            as_vsphere = done.returncode == 0 and re.search(row.out, text, re.MULTILINE) is not None
        if not as_vsphere:
            wrong.append(f"{row}\n  exit code {done.returncode}\n  {text[:600]}\n  {done.stderr.strip()[:600]}")
    assert not wrong, "\n".join(wrong)
    assert_no_panic(vcenter)


def test_what_differs_is_written_down() -> None:
    assert_written_down(ROWS)
