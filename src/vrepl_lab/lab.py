"""A lab: its folder, its two simulators, and what can be done to them while they run."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from vrepl_lab import configuration, machines, nasty, processes, proxies
from vrepl_lab.build import Built, Say, build, say_on_stderr
from vrepl_lab.certificates import Authority
from vrepl_lab.control import Control
from vrepl_lab.errors import LabError
from vrepl_lab.folder import (
    SITES,
    STATE,
    RunningSite,
    loopback_network,
    read_state,
    reserved,
    starting,
    write_state,
)
from vrepl_lab.guests import find_tool, make_images, random_pieces
from vrepl_lab.processes import ProcessIdentity
from vrepl_lab.settings import Change, SettingsFile, parse_assignments
from vrepl_lab.spec import FILLED_EXTRA_VMS, LabSpec, inventory

USER = "vrepl@vsphere.local"
SERVER = "127.0.0.1"
START_TIMEOUT_S = 300.0
OWN_FILES = (STATE, "vrepl.toml", "ca.pem", "secrets", "proxies", "repository", "images", *SITES)


class Lab:
    """A running lab. As a context manager it stops at the end; `start` makes one, `attach` finds one."""

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, RunningSite],
        children: Mapping[str, subprocess.Popen[bytes]] | None = None,
    ) -> None:
        self.folder = folder
        self.sites = dict(sites)
        self._children = dict(children or {})

    # ── starting, finding, ending ──

    @classmethod
    def start(cls, folder: Path, spec: LabSpec, *, detached: bool = False, say: Say = say_on_stderr) -> Lab:
        """Make a lab in `folder` (new, empty, or a stopped lab's) and wait until it serves.

        Unless `detached`, the simulators end when this process does. Raises LabError; nothing is left running then.
        """
        folder = folder.absolute()
        if nasty.wanted():
            spec = replace(spec, prod=replace(spec.prod, twin=True), dr=replace(spec.dr, twin=True))
        if spec.needs_file_systems:
            find_tool("mke2fs")  # before a build of a minute, not after it
        built = build(say)
        with reserved(folder):
            if find_running(folder) is not None:
                raise LabError(f"a lab is running in {folder}", hint=f"vrepl lab down --dir {folder}")
            clear(folder)
            write_state(folder, {})
            return cls._start_in(folder, spec, built, detached, say)

    @classmethod
    def _start_in(cls, folder: Path, spec: LabSpec, built: Built, detached: bool, say: Say) -> Lab:
        say(f"lab: making the guests' disks in {folder}")
        network = loopback_network(folder)
        inventories = make_site_folders(folder, spec, network)
        for proxy in spec.proxies:
            luns = [host_lun for entry in inventories.values() for host_lun in luns_of(entry)]
            uuid = proxies.bios_uuid_of(proxy.vm, inventories) if proxy.vm else None
            proxies.make_sysroot(folder, proxy, bios_uuid=uuid, luns=luns, seed=spec.seed)
        thumbprints = make_certificates(folder, spec)
        say("lab: starting two vCenters")
        lab = cls(folder, {})
        try:
            for site in SITES:
                lab._start_site(site, built, detached)
            # From here on `vrepl lab down` finds them, even if we are killed before they serve.
            write_state(folder, {site: starting(child) for site, child in lab._children.items()})
            for site in SITES:
                lab.sites[site] = lab._wait_for_site(site, thumbprints[site])
            lab._start_machines([proxy.name for proxy in spec.proxies if proxy.site is not None])
            lab._write_configuration(spec, built)
            write_state(folder, lab.sites)
            if nasty.wanted():
                lab.set("nasty=on")
        except BaseException:
            lab._end_children()
            raise
        shutil.rmtree(folder / "images", ignore_errors=True)
        if detached:
            lab._children.clear()
        return lab

    def _start_site(self, site: str, built: Built, detached: bool) -> None:
        home = self.folder / site
        command = [str(built.simulator), "--site", site, "--dir", str(home), "--listen", f"{SERVER}:0", "--user", USER]
        command += ["--password-file", str(self.folder / "secrets" / f"{site}-password")]
        command += ["--cert", str(home / "cert.pem"), "--key", str(home / "key.pem")]
        if not detached:
            command.append("--die-with-stdin")
        self._children[site] = processes.start(command, home / "sim.log", die_with_us=not detached)

    def _start_machines(self, names: Sequence[str]) -> None:
        if not names:
            return
        machines.make_keys(self.folder)
        simulators = [site.process for site in self.sites.values()]
        addresses = [machines.address_of(self.folder, position) for position in range(len(names))]
        with ThreadPoolExecutor(len(names)) as pool:
            ports = pool.map(
                lambda name, address: machines.start(self.folder, name, address, simulators), names, addresses
            )
            servers = dict(zip(names, zip(addresses, ports, strict=True), strict=True))
        machines.write_ssh_config(self.folder, servers)

    def _wait_for_site(self, site: str, thumbprints: tuple[str, str]) -> RunningSite:
        child = self._children[site]
        ready = self.folder / site / "ready.json"
        processes.wait_until(lambda: ready.exists() or child.poll() is not None, START_TIMEOUT_S)
        identity = ProcessIdentity.of(child.pid)
        if not ready.exists() or identity is None:
            log = self.folder / site / "sim.log"
            said = log.read_text(errors="replace")[-2000:].strip()
            how = "did not get ready" if child.poll() is None else f"ended with status {child.returncode}"
            raise LabError(f"the simulator of site {site} {how}; {log} ends with:\n{said}")
        facts = json.loads(ready.read_text())
        return RunningSite(
            process=identity,
            port=facts["url_port"],
            vddk_port=facts["vddk_port"],
            nfc_port=facts["nfc_port"],
            hosts=tuple(host["name"] for host in facts["hosts"]),
            sha1_thumbprint=thumbprints[0],
            sha256_thumbprint=thumbprints[1],
        )

    def _write_configuration(self, spec: LabSpec, built: Built) -> None:
        servers = [
            proxies.ServerEntry(
                name, site.port, SERVER, site.vddk_port, site.sha1_thumbprint, self.folder / key / "settings.bin"
            )
            for key, site in self.sites.items()
            for name in (SERVER, "localhost")
        ]
        for proxy in spec.proxies if spec.vddk else ():
            proxies.install_vddk(self.folder, proxy.name, built, servers)
        jobs = [configuration.JobText("demo", spec.names_of_job_vms)]
        extra = [vm.name for vm in spec.prod.vms if vm.name.startswith("vm-")][:FILLED_EXTRA_VMS]
        if extra and not set(extra) & set(spec.names_of_job_vms):
            jobs.append(configuration.JobText("fleet", extra))
        text = configuration.configuration(
            self.folder,
            [
                configuration.SiteAccess(name, SERVER, site.port, USER, site.nfc_port)
                for name, site in self.sites.items()
            ],
            list(spec.proxies),
            [job for job in jobs if job.vms],
            target_host=self.sites["dr"].hosts[0],
            job_proxy=spec.job_proxy,
            vddk=spec.vddk,
        )
        (self.folder / "vrepl.toml").write_text(text)

    @classmethod
    def attach(cls, folder: Path) -> Lab:
        """The lab that runs in `folder`. Raises LabError if none does."""
        folder = folder.absolute()
        lab = find_running(folder)
        if lab is None:
            raise LabError(f"no lab is running in {folder}", hint=f"vrepl lab up --dir {folder}")
        return lab

    def stop(self) -> list[str]:
        """End the simulators that this lab started and wait for it; returns the sites that were still running."""
        return [name for name in self.sites if self.stop_site(name)]

    def stop_site(self, site: str) -> bool:
        """End one simulator, as a site is lost; false if it had ended before. The other one goes on."""
        return processes.end(self._site(site).process, self._children.pop(site, None))

    def _site(self, name: str) -> RunningSite:
        if name not in self.sites:
            raise LabError(f"no site {name} in this lab (there are {', '.join(self.sites)})")
        return self.sites[name]

    @property
    def live_sites(self) -> dict[str, RunningSite]:
        """Those whose simulators run."""
        return {name: site for name, site in self.sites.items() if site.process.is_alive()}

    def _end_children(self) -> None:
        for child in self._children.values():
            identity = ProcessIdentity.of(child.pid)
            if identity is not None:
                processes.end(identity, child)
            child.wait()
        self._children.clear()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ── what it offers ──

    @property
    def config_file(self) -> Path:
        return self.folder / "vrepl.toml"

    def libdir(self, proxy: str = "bare") -> Path:
        """The VDDK folder of a proxy."""
        return proxies.libdir(self.folder, proxy)

    def password(self, site: str) -> str:
        return (self.folder / "secrets" / f"{site}-password").read_text().strip()

    def control(self, site: str) -> Control:
        self._site(site)
        return Control(site, self.folder / site / "control.sock")

    def settings_file(self, site: str) -> SettingsFile:
        return SettingsFile(self.folder / site / "settings.bin")

    def set(self, *assignments: str) -> None:
        """What `vrepl lab set` does: takes effect at once, for open disks too. Raises LabError before any change if
        one assignment is wrong."""
        for site, change in parse_assignments(assignments, tuple(self.live_sites)).items():
            self._apply(site, change)

    def _apply(self, site: str, change: Change) -> None:
        control = self.control(site)
        hosts = self.sites[site].hosts
        limits = change.simulator.get("nfc_limit_mib", {})
        if "*" in limits:
            everywhere = limits.pop("*")
            change.simulator["nfc_limit_mib"] = dict.fromkeys(hosts, everywhere) | limits
        if change.simulator.get("nfc_closed") == ["all"]:
            change.simulator["nfc_closed"] = list(hosts)
        if change.simulator:
            control.post("/settings", change.simulator)
        if change.guests or change.clear_guests:
            control.post("/settings", {"guests": change.guests}, add=None if change.clear_guests else 1)
        if change.clear_faults or change.api_faults:
            add = None if change.clear_faults else 1
            control.post("/faults", [fault.as_json() for fault in change.api_faults], add=add)
        if change.library or change.clear_faults or change.disk_faults:
            self.settings_file(site).write(change)

    def status(self) -> dict[str, Any]:
        """Per site: ports, settings, and the simulator's own account of locks, NFC memory and connections."""
        return {
            name: {
                "pid": site.process.pid,
                "port": site.port,
                "vddk_port": site.vddk_port,
                "nfc_port": site.nfc_port,
                "hosts": list(site.hosts),
                "settings": self.settings_file(name).read(),
                **self.control(name).get("/status"),
            }
            for name, site in self.live_sites.items()
        }

    # ── disks, as the guest has them ──

    def write(self, site: str, vm: str, index: int, offset: int, data: bytes) -> None:
        """What a running guest writes: recorded by change tracking, into the current leaf."""
        self.control(site).put("/disk/write", data, vm=vm, index=index, offset=offset)

    def write_random(self, site: str, vm: str, index: int, offset: int, length: int, seed: str) -> int:
        return self.control(site).write(vm, index, offset, random_pieces(seed, length))

    def unmap(self, site: str, vm: str, index: int, offset: int, length: int) -> None:
        """What a guest's TRIM does."""
        self.control(site).post("/disk/unmap", vm=vm, index=index, offset=offset, length=length)

    def export(self, site: str, vm: str, index: int, out: Path, snapshot: str | None = None) -> Path:
        """Write the raw disk, sparse, as the guest (or a snapshot, by name) has it."""
        out = out.absolute()
        if not out.parent.is_dir():
            raise LabError(f"cannot write {out}: there is no folder {out.parent}")
        self.control(site).post("/disk/export", vm=vm, index=index, snapshot=snapshot, out=str(out))
        return out

    def reset_cbt(self, site: str, vm: str, index: int) -> None:
        """Rotate the disk's change-ID uuid and forget what changed, as a storage migration or a crash may do."""
        self.control(site).post("/cbt/reset", vm=vm, index=index)

    def set_tools(self, site: str, vm: str, status: str) -> None:
        """`running` or `notRunning`."""
        self.control(site).post("/vm/tools", vm=vm, status=status)

    def lose_power(self, site: str, vm: str) -> None:
        """What a failing host does: the VM is off, and changes that no snapshot holds are lost to change tracking."""
        self.control(site).post("/vm/power-loss", vm=vm)

    def guest_folder(self, site: str, vm: str) -> Path:
        """The folder that stands for the file system of a VM's guest (docs/lab.md, "Programs in guests")."""
        return Path(self.control(site).get("/vm/guest-folder", vm=vm)["folder"])

    def soap_calls(self, site: str) -> dict[str, Any]:
        """{"total": n, "by_method": {…}} since the start or the last reset."""
        calls = self.control(site).get("/soap-calls")
        assert isinstance(calls, dict)
        return calls

    def reset_soap_calls(self, site: str) -> None:
        self.control(site).post("/soap-calls/reset")


def clear(folder: Path) -> None:
    """Make `folder` ready for a new lab. Only a lab's own files are deleted; a foreign folder is refused."""
    if any(folder.iterdir()):
        left = read_state(folder)
        if left is None:
            raise LabError(f"{folder} is not empty and not a lab's folder", hint="give another one with --dir")
        Lab(folder, left).stop()
    for name in OWN_FILES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def find_running(folder: Path) -> Lab | None:
    """The lab of this folder, if one of its sites serves: the other one may be lost."""
    sites = read_state(folder)
    if not sites or not all(site.port for site in sites.values()):
        return None
    lab = Lab(folder, sites)
    return lab if lab.live_sites else None


def stop_in(folder: Path, site: str | None = None) -> list[str]:
    """`vrepl lab down`: end what this folder's lab started, or one site of it; returns the sites that were running."""
    folder = folder.absolute()
    sites = read_state(folder)
    if sites is None:
        raise LabError(f"{folder} is not a lab's folder", hint="give the lab's with --dir")
    lab = Lab(folder, sites)
    if site is None:
        return lab.stop()
    return [site] if lab.stop_site(site) else []


def make_site_folders(folder: Path, spec: LabSpec, network: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Folders, passwords, settings and inventories of both sites; the guests' disk images on the way."""
    (folder / "secrets").mkdir(mode=0o700)
    with ThreadPoolExecutor(len(SITES)) as pool:
        made = {
            site: pool.submit(make_images, site, spec.sites[site], folder / "images" / site, spec.seed)
            for site in SITES
        }
        images = {site: future.result() for site, future in made.items()}
    inventories = {}
    for site in SITES:
        home = folder / site
        (home / "datastores").mkdir(parents=True)
        SettingsFile(home / "settings.bin").create()
        password = folder / "secrets" / f"{site}-password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(18) + "\n")
        entry = inventory(site, spec.sites[site], seed=spec.seed, network=network, images=images[site])
        (home / "inventory.json").write_text(json.dumps(entry, indent=1) + "\n")
        inventories[site] = entry
    return inventories


def luns_of(inventory_entry: Mapping[str, Any]) -> Sequence[str]:
    return sorted({lun for host in inventory_entry["hosts"] for lun in host["luns"]})


def make_certificates(folder: Path, spec: LabSpec) -> dict[str, tuple[str, str]]:
    """ca.pem and a certificate per site; returns their thumbprints (SHA-1, SHA-256)."""
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.pem)
    thumbprints = {}
    for site in SITES:
        certificate = authority.issue(("localhost", SERVER), spec.sites[site].certificate)
        certificate.write(folder / site / "cert.pem", folder / site / "key.pem")
        thumbprints[site] = (certificate.sha1_thumbprint, certificate.sha256_thumbprint)
    return thumbprints
