"""The lab's proxy VM as vSphere and its guest show it, from outside of vrepl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import PROXY_VM

PROXY = "hotadd"


def sysroot(lab: Lab) -> Path:
    """What the proxy's guest sees as its root folder."""
    return lab.folder / "proxies" / PROXY / "sysroot"


def disks_of(vm: Any) -> list[Any]:
    return [one for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]


def hanging(lab: Lab, site: str) -> list[str]:
    """Files of the disks that hang on the proxy VM beside its own."""
    with plain_api.session(lab, site) as api:
        vm = vm_named(api, PROXY_VM)
        folder = str(vm.config.files.vmPathName).rpartition("/")[0]
        return [path for disk in disks_of(vm) if not (path := str(disk.backing.fileName)).startswith(folder)]


def marks(lab: Lab, site: str) -> list[str]:
    """Keys of the proxy VM's extraConfig that say that vrepl attached something."""
    with plain_api.session(lab, site) as api:
        options = vm_named(api, PROXY_VM).config.extraConfig
        return [one.key for one in options if one.key.startswith("vrepl.attached.") and one.value]


def assert_bare(lab: Lab) -> None:
    """Nothing of vrepl's hangs on the proxy at either site, for vSphere and for its guest."""
    for site in ("prod", "dr"):
        assert hanging(lab, site) == []
        assert marks(lab, site) == []
    units = {folder.name for folder in (sysroot(lab) / "sys/bus/scsi/devices").glob("*")}
    assert units <= {"2:0:0:0", "6:0:0:0"}, "the proxy's own disks alone are left"


def reconfigure(lab: Lab, site: str, spec: Any) -> None:
    with plain_api.session(lab, site) as api:
        wait(vm_named(api, PROXY_VM).ReconfigVM_Task(spec=spec))


def pull(lab: Lab, site: str) -> None:
    """Somebody takes the disks off the proxy VM that are not its own."""
    with plain_api.session(lab, site) as api:
        vm = vm_named(api, PROXY_VM)
        folder = str(vm.config.files.vmPathName).rpartition("/")[0]
        changes = [
            vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk)
            for disk in disks_of(vm)
            if not str(disk.backing.fileName).startswith(folder)
        ]
        assert changes, "nothing hangs on the proxy"
        wait(vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(deviceChange=changes)))


def set_disk_uuids(lab: Lab, site: str, value: str) -> None:
    option = vim.option.OptionValue(key="disk.EnableUUID", value=value)
    reconfigure(lab, site, vim.vm.ConfigSpec(extraConfig=[option]))
