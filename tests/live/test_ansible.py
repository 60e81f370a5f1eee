"""Ansible's VMware modules, which know nothing of vrepl, against the lab: what vSphere answers, the lab does.

They come with the extra `interop` (half a gigabyte, so not with `dev`). Those for tags want VMware's Automation SDK,
which is not among them: `govc` goes over REST. A row that the lab answers otherwise than vSphere says so in `differs`;
docs/lab-internals.md lists these.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.other_clients import assert_no_panic, assert_written_down
from vrepl_lab.lab import USER, Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

SPEC = LabSpec.of_vms(
    VmSpec("web-01", disks=(DiskSpec(2 * MIB, content="random"),), cpus=2),
    VmSpec("app-01", disks=(DiskSpec(MIB, content="random"),), power="poweredOff", tools="notRunning"),
)
DATACENTER = {"datacenter": "prod-dc"}
CLUSTER = {**DATACENTER, "cluster": "prod-cluster"}
MADE = {**DATACENTER, "name": "made-01", "folder": "/prod-dc/vm"}
NEW = {
    **MADE,
    "cluster": "prod-cluster",
    "datastore": "prod-vmfs-01",
    "guest_id": "otherGuest64",
    "hardware": {"memory_mb": 128, "num_cpus": 1, "scsi": "paravirtual"},
    "disk": [{"size_mb": 8, "type": "thin", "datastore": "prod-vmfs-01"}],
    "networks": [{"name": "VM Network", "device_type": "vmxnet3"}],
}
LOGIN = {"vm_username": "root", "vm_password": "guest", "vm_id": "web-01", **DATACENTER}


@dataclass(frozen=True, slots=True)
class Row:
    """`out` is a pattern in the module's result as JSON, `fails` one in the error that vSphere gives."""

    module: str
    arguments: dict[str, Any] = field(default_factory=dict)
    out: str = ""
    fails: str = ""
    changed: bool | None = None
    differs: str = ""

    @property
    def name(self) -> str:
        return self.module if "." in self.module else f"community.vmware.{self.module}"


ROWS = [
    # the inventory
    Row("vmware_about_info", out=r'"product_name": "VMware vCenter Server"'),
    Row("vmware_datacenter_info", DATACENTER, out='"name": "prod-dc"'),
    Row("vmware_cluster_info", {**DATACENTER, "cluster_name": "prod-cluster"}, differs="GetResourceUsage"),
    Row("vmware_datastore_info", DATACENTER, out='"name": "prod-vmfs-01"'),
    Row("vmware_folder_info", DATACENTER, out='"path": "/prod-dc/vm"'),
    Row("vmware_resource_pool_info", out='"name": "Resources"'),
    Row("vmware_portgroup_info", {"cluster_name": "prod-cluster"}, out='"portgroup": "VM Network"'),
    Row(
        "vmware_host_facts", {"esxi_hostname": "HOST", "schema": "vsphere", "properties": ["runtime"]}, out="connected"
    ),
    Row("vmware_vm_info", out='"guest_name": "web-01"'),
    Row("vmware_vm_info", {"vm_name": "app-01"}, out='"power_state": "poweredOff"'),
    # one VM as it is
    Row("vmware_guest_info", {**DATACENTER, "name": "web-01"}, out='"hw_processor_count": 2'),
    Row("vmware_guest_find", {"name": "web-01"}, out='"/prod-dc/vm'),
    Row("vmware_guest_disk_info", {**DATACENTER, "name": "web-01"}, out=r'"label": "Hard disk 1"'),
    Row("vmware_guest_boot_info", {"name": "web-01"}, out='"current_boot_firmware": "efi"'),
    Row("vmware_guest_tools_info", {"name": "web-01"}, out="guestToolsRunning"),
    Row("vmware_guest_tools_wait", {"name": "web-01", "timeout": 30}, out="guestToolsRunning"),
    Row("vmware_guest_info", {**DATACENTER, "name": "nobody"}, fails="[Uu]nable to gather information|non-existing VM"),
    Row("vmware.vmware.vm_powerstate", {**DATACENTER, "name": "web-01", "state": "powered-on"}, changed=False),
    # a VM is made, as people make them
    Row("vmware_guest", {**NEW, "state": "present"}, out='"hw_power_status": "poweredOff"', changed=True),
    Row("vmware_guest", {**NEW, "state": "present"}, changed=False),
    Row(
        "vmware_guest_disk",
        {**MADE, "disk": [{"size_mb": 4, "type": "thin", "scsi_controller": 0, "unit_number": 1, "state": "present"}]},
        out='"label": "Hard disk 2"',
        changed=True,
    ),
    Row(
        "vmware_guest_disk",
        {**MADE, "disk": [{"scsi_controller": 0, "unit_number": 1, "state": "absent"}]},
        changed=True,
    ),
    Row("vmware_guest_network", {**MADE, "gather_network_info": True}, out='"label": "Network adapter 1"'),
    Row(
        "vmware_guest_custom_attributes",
        {"name": "made-01", "attributes": [{"name": "owner", "value": "ops"}]},
        changed=True,
    ),
    Row(
        "vmware_object_custom_attributes_info", {"object_type": "VirtualMachine", "object_name": "made-01"}, out='"ops"'
    ),
    Row("vmware_guest_powerstate", {"name": "made-01", "state": "powered-on"}, out='"poweredOn"', changed=True),
    Row("vmware_guest_powerstate", {"name": "made-01", "state": "powered-on"}, changed=False),
    Row("vmware_guest", {**MADE, "state": "absent"}, fails="poweredOn|power"),
    # snapshots
    Row("vmware_guest_snapshot", {**MADE, "snapshot_name": "one", "state": "present"}, changed=True),
    Row("vmware_guest_snapshot", {**MADE, "snapshot_name": "two", "state": "present"}, changed=True),
    Row("vmware_guest_snapshot_info", MADE, out='"name": "two"'),
    Row("vmware_all_snapshots_info", DATACENTER, out="made-01"),
    Row("vmware_guest_snapshot", {**MADE, "snapshot_name": "one", "state": "revert"}, changed=True),
    Row("vmware_guest_snapshot", {**MADE, "snapshot_name": "one", "state": "absent"}, changed=True),
    Row("vmware_guest_snapshot", {**MADE, "state": "remove_all"}, changed=True),
    Row(
        "vmware_guest_snapshot",
        {**MADE, "snapshot_name": "gone", "state": "revert"},
        fails="does not have any snapshots",
    ),
    # it moves, is registered anew, and goes
    Row("vmware_vmotion", {"vm_name": "made-01", "destination_datastore": "prod-vmfs-02"}, changed=True),
    Row("vmware_guest_powerstate", {"name": "made-01", "state": "powered-off"}, changed=False),  # since it was reverted
    Row("vmware_guest_powerstate", {"name": "web-01", "state": "powered-off"}, changed=True),
    Row("vmware_guest_powerstate", {"name": "web-01", "state": "powered-on"}, changed=True),
    Row("vmware_guest_tools_wait", {"name": "web-01", "timeout": 60}, out="guestToolsRunning"),
    Row("vmware_guest_boot_manager", {"name": "made-01", "boot_delay": 2000}, changed=True),
    Row("vmware_guest_register_operation", {**MADE, **CLUSTER, "state": "absent"}, changed=True),
    Row(
        "vmware_guest_register_operation",
        {**MADE, **CLUSTER, "path": "[prod-vmfs-02] made-01/made-01.vmx", "state": "present"},
        changed=True,
    ),
    Row("vmware_guest", {**MADE, "state": "absent"}, changed=True),
    Row("vmware_guest", {**MADE, "state": "absent"}, changed=False),
    # in the guest
    Row(
        "vmware_vm_shell",
        {**LOGIN, "vm_shell": "/bin/true", "vm_shell_args": " ", "wait_for_process": True},
        changed=True,
    ),
    Row(
        "vmware_vm_shell",
        {**LOGIN, "vm_password": "wrong", "vm_shell": "/bin/true"},
        fails="[Aa]uthenticat|login|credentials",
    ),
    Row(
        "vmware_guest_file_operation",
        {**LOGIN, "directory": {"path": "/tmp/made", "operation": "create", "recurse": False}},
        changed=True,
    ),
]


def installed() -> bool:
    return importlib.util.find_spec("ansible_collections") is not None and (
        importlib.util.find_spec("ansible_collections.community.vmware") is not None
    )


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not installed(), reason="Ansible is not installed (pip install -e '.[interop]')"),
]


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(SPEC)


def results(vcenter: Lab, folder: Path) -> list[dict[str, Any]]:
    """What each row's module answered, one after the other: each starts from what those before it left."""
    host = json.loads((vcenter.folder / "prod" / "inventory.json").read_text())["hosts"][0]["name"]
    tasks = []
    for row in ROWS:
        arguments = {key: host if value == "HOST" else value for key, value in row.arguments.items()}
        tasks.append({"name": row.module, row.name: arguments, "ignore_errors": True})
    playbook = folder / "play.json"
    playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    environment = {
        **os.environ,
        "HOME": str(folder),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "SSL_CERT_FILE": str(vcenter.folder / "ca.pem"),
        "REQUESTS_CA_BUNDLE": str(vcenter.folder / "ca.pem"),
        "VMWARE_HOST": "127.0.0.1",
        "VMWARE_PASSWORD": vcenter.password("prod"),
        "VMWARE_PORT": str(vcenter.sites["prod"].port),
        "VMWARE_USER": USER,
    }
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local", str(playbook)],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    [play] = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
    return [task["hosts"]["localhost"] for task in play["tasks"]]


@pytest.mark.timeout(1500)
def test_ansible_finds_vsphere(vcenter: Lab, tmp_path: Path) -> None:
    wrong = []
    for row, result in zip(ROWS, results(vcenter, tmp_path), strict=True):
        failed = bool(result.get("failed"))
        text = json.dumps(result, sort_keys=True)
        if row.differs:
            as_vsphere = failed  # the day it works, the row is to be written anew
        elif row.fails:
            as_vsphere = failed and re.search(row.fails, str(result.get("msg"))) is not None
        else:
            as_vsphere = not failed and re.search(row.out, text) is not None
            as_vsphere = as_vsphere and row.changed in {None, result.get("changed")}
        if not as_vsphere:
            said = str(result.get("exception") or "") + str(result.get("msg") or text)
            wrong.append(f"{row}\n  failed={failed} changed={result.get('changed')}\n  {said[-1500:]}")
    assert not wrong, "\n".join(wrong)
    assert_no_panic(vcenter)


def test_what_differs_is_written_down() -> None:
    assert_written_down(ROWS)
