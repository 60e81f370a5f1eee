"""Two real vCenters: a VM of the tests' own on one, its replica on the other, everything removed at the end."""

from __future__ import annotations

import json
import os
import re
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from vrepl import config
from vrepl.config import LoadedConfig
from vrepl.secrets import Secrets
from vrepl.vsphere import tls

PREFIX = "vrepl-test-"
"""Whatever bears it was made by these tests, and by nothing else."""
MIB = 1 << 20
DISKS = (48 * MIB, 9 * MIB)
VREPL = [sys.executable, "-m", "vrepl"]
ROOT = Path(__file__).parents[2]


def toml(value: Any) -> str:
    """A value as TOML writes it inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value)


def wait(task: Any) -> Any:
    """The task's result; raises its fault."""
    while task.info.state not in ("success", "error"):
        time.sleep(0.2)
    if task.info.state == "error":
        raise task.info.error
    return task.info.result


@dataclass
class Site:
    """One vCenter, spoken to by plain pyVmomi."""

    loaded: LoadedConfig
    name: str
    instance: Any = field(init=False)
    thumbprint: str = field(init=False)
    password: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        table = self.loaded.config.sites[self.name]
        self.password = Secrets().resolve(table.password.reference()).get_secret_value()
        context = tls.make_context(ca_file=table.ca_file, thumbprint=table.thumbprint_sha256)
        self.instance = SmartConnect(
            host=table.server, port=table.port, user=table.user, pwd=self.password, sslContext=context
        )
        assert isinstance(context, ssl.SSLContext)
        assert context.peer is not None
        self.thumbprint = tls.sha1_thumbprint(context.peer)

    def all(self, kind: Any) -> list[Any]:
        view = self.instance.content.viewManager.CreateContainerView(self.instance.content.rootFolder, [kind], True)
        try:
            return list(view.view)
        finally:
            view.Destroy()

    def vms(self, prefix: str) -> list[Any]:
        return [vm for vm in self.all(vim.VirtualMachine) if vm.name.startswith(prefix)]

    def vm(self, name: str) -> Any:
        (found,) = [vm for vm in self.vms(name) if vm.name == name]
        return found

    def create_vm(self, name: str, datastore: str | None) -> None:
        """Powered off, without a guest; two thin disks on one controller."""
        host, store = self._place(datastore)
        cluster = host.parent
        datacenter = cluster
        while not isinstance(datacenter, vim.Datacenter):
            datacenter = datacenter.parent
        device = vim.vm.device
        controller = device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
        changes = [device.VirtualDeviceSpec(operation="add", device=controller)]
        for number, capacity in enumerate(DISKS):
            backing = device.VirtualDisk.FlatVer2BackingInfo(
                fileName=f"[{store.name}]", diskMode="persistent", thinProvisioned=True
            )
            disk = device.VirtualDisk(
                key=-2 - number, controllerKey=-1, unitNumber=number, backing=backing,
                capacityInKB=capacity // 1024, capacityInBytes=capacity,
            )  # fmt: skip
            changes.append(device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk))
        spec = vim.vm.ConfigSpec(
            name=name, guestId="otherGuest64", numCPUs=1, memoryMB=64, deviceChange=changes,
            files=vim.vm.FileInfo(vmPathName=f"[{store.name}]"), annotation="made by vrepl's tests; may be deleted",
        )  # fmt: skip
        wait(datacenter.vmFolder.CreateVM_Task(config=spec, pool=cluster.resourcePool, host=host))

    def _place(self, datastore: str | None) -> tuple[Any, Any]:
        """A connected host, and the datastore asked for, or the one with the most room that the host can write to."""
        best: tuple[Any, Any] | None = None
        for host in self.all(vim.HostSystem):
            if str(host.runtime.connectionState) != "connected" or host.runtime.inMaintenanceMode:
                continue
            for store in host.datastore:
                if datastore not in {None, store.name} or not store.summary.accessible:
                    continue
                if best is None or store.summary.freeSpace > best[1].summary.freeSpace:
                    best = host, store
        assert best is not None, f"no connected host has a datastore {datastore or ''} on site {self.name}"
        return best

    def destroy(self, prefix: str) -> None:
        for vm in self.vms(prefix):
            wait(vm.Destroy_Task())

    def close(self) -> None:
        Disconnect(self.instance)


class TwoSites:
    """The sites of one job of the operator's configuration, and a configuration of the tests' own made of it."""

    def __init__(self, operators: Path, folder: Path) -> None:
        loaded = config.load(operators)
        job = loaded.job(os.environ.get("VREPL_TEST_JOB") or next(iter(loaded.config.jobs)))
        self.loaded, self.folder = loaded, folder
        self.name = f"{PREFIX}{secrets.token_hex(3)}"
        tables = loaded.config.model_dump(mode="json", exclude_unset=True)
        own_job = tables["jobs"][job.name] | {
            "vms": [self.name], "replica_name": "{name}-replica", "retention": {"last": 2},
        }  # fmt: skip
        own = tables | {"repository": {"path": str(folder / "repository")}, "jobs": {"test": own_job}}
        self.config_file = folder / "vrepl.toml"
        self.config_file.write_text("".join(f"{key} = {toml(value)}\n" for key, value in own.items()))
        self.libdir = loaded.config.vddk.libdir
        self.source, self.target = Site(loaded, job.source), Site(loaded, job.target)

    def make(self) -> None:
        self.source.create_vm(self.name, os.environ.get("VREPL_TEST_SOURCE_DATASTORE"))

    def clean_up(self) -> None:
        """Remove this run's VM and its replica; raises if anything of them is left."""
        try:
            self.target.destroy(self.name)
        finally:
            self.source.destroy(self.name)
        left = [vm.name for site in (self.source, self.target) for vm in site.vms(self.name)]
        self.source.close()
        self.target.close()
        assert left == [], f"remove by hand: {', '.join(left)}"

    # -- vrepl ------------------------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> list[str]:
        return [*VREPL, "--config", str(self.config_file), *arguments]

    def json(self, *arguments: str) -> Any:
        done = subprocess.run(self.command(*arguments, "--json"), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}\n{done.stdout}"
        return json.loads(done.stdout)

    def replicate(self) -> Any:
        (report,) = self.json("replicate", "test")["vms"]
        assert report["result"] == "success"
        return report

    # -- disks, from outside of vrepl -------------------------------------------------------------------------------

    def write(self, index: int, *pieces: tuple[int, int, int | None]) -> None:
        """Each piece: offset, length, seed (None: zeros); what a guest would have written."""
        vm = self.source.vm(self.name)
        self._ask(self.source, vm, None, disk_path(vm.config, index), write=[list(piece) for piece in pieces])

    def source_digests(self) -> list[list[str]]:
        vm = self.source.vm(self.name)
        return [self._ask(self.source, vm, None, disk_path(vm.config, index)) for index in range(len(DISKS))]

    def replica_digests(self, restore_point: str) -> list[list[str]]:
        vm = self.target.vm(f"{self.name}-replica")
        (snapshot,) = [node for node in snapshots(vm) if node.name == f"vrepl {restore_point}"]
        paths = [disk_path(snapshot.snapshot.config, index) for index in range(len(DISKS))]
        return [self._ask(self.target, vm, snapshot.snapshot._moId, path) for path in paths]

    def assert_equal(self, report: Any) -> None:
        """The restore point holds the source's disks, and the source is as it was found."""
        assert self.replica_digests(report["restore_point"]) == self.source_digests()
        source = self.source.vm(self.name)
        assert source.snapshot is None
        assert not source.runtime.consolidationNeeded
        assert "RelocateVM_Task" not in source.disabledMethod
        assert "RelocateVM_Task" not in self.target.vm(f"{self.name}-replica").disabledMethod

    def _ask(self, site: Site, vm: Any, snapshot: str | None, path: str, **more: Any) -> Any:
        table = self.loaded.config.sites[site.name]
        order = {
            "libdir": str(self.libdir), "server": table.server, "port": table.port, "nfc_port": table.nfc_port,
            "user": table.user, "password": site.password, "thumbprint": site.thumbprint, "moref": vm._moId,
            "snapshot": snapshot, "path": path, **more,
        }  # fmt: skip
        environment = {**os.environ, "LD_LIBRARY_PATH": f"{self.libdir}/lib64"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.disk_client"], cwd=ROOT, input=json.dumps(order), env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, re.sub(re.escape(site.password), "…", done.stderr)
        return json.loads(done.stdout)


def disk_path(configuration: Any, index: int) -> str:
    disks: list[Any] = [one for one in configuration.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    return str(disks[index].backing.fileName)


def snapshots(vm: Any) -> Sequence[Any]:
    def below(nodes: Any) -> list[Any]:
        return [one for node in nodes for one in (node, *below(node.childSnapshotList))]

    return below(vm.snapshot.rootSnapshotList) if vm.snapshot else []
