"""Promises of what a first user meets: for each mistake a message that says what, a hint that says what to do, an exit
code, nothing changed anywhere, and never a traceback.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import preloaded
from tests.support.small_lab import small_spec
from vrepl.repository.documents import with_checksum
from vrepl_lab.lab import Lab
from vrepl_lab.spec import LabSpec

VREPL = [sys.executable, "-m", "vrepl"]
TAKES_A_SNAPSHOT, MAKES_A_VM = "CreateSnapshot_Task", "CreateVM_Task"


class BadInput:
    """A user with a configuration that differs from the lab's own in the pairs (old text, new text)."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder

    def config(self, *pairs: tuple[str, str]) -> Path:
        text = self.lab.config_file.read_text()
        for old, new in pairs:
            assert old in text, f"the lab's configuration holds no {old}"
            text = text.replace(old, new)
        own = self.folder / "vrepl.toml"
        own.write_text(text)
        return own

    def secret(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def run(self, *arguments: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
        return judge(preloaded.run("--config", str(config or self.lab.config_file), *arguments, timeout=120))

    def made(self) -> dict[str, int]:
        """Calls since the last reset that left something behind."""
        calls = [self.lab.soap_calls(site)["by_method"] for site in ("prod", "dr")]
        return {
            method: sum(one.get(method, 0) for one in calls)
            for method in (TAKES_A_SNAPSHOT, MAKES_A_VM, "ReconfigVM_Task")
        }


def judge(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Whatever is wrong: no traceback, and a hint with each error."""
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "unexpected" not in said
    if done.returncode not in {0, 130}:
        assert said.count("hint: ") >= 1
    return done


@pytest.fixture(scope="module")
def lab_of_module(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(small_spec())


@pytest.fixture
def user(lab_of_module: Lab, tmp_path: Path) -> Iterator[BadInput]:
    for site in ("prod", "dr"):
        lab_of_module.reset_soap_calls(site)
    yield BadInput(lab_of_module, tmp_path)
    lab_of_module.set(
        "faults=none", "nfc_closed=none", "missing_privileges=none", "datastore_free_mib=none", "bandwidth_mib_s=0"
    )


def expect(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


# -- getting in ------------------------------------------------------------------------------------------------------


def test_a_wrong_password(user: BadInput) -> None:
    wrong = user.config((str(user.lab.folder / "secrets" / "prod-password"), str(user.secret("wrong", "wrong"))))
    for command in (("replicate", "demo"), ("plan", "demo"), ("vms", "prod")):
        expect(
            user.run(*command, config=wrong), 12,
            "site prod: 127.0.0.1 refuses the login of vrepl@vsphere.local", "check user and password in [sites.prod]",
        )  # fmt: skip
    assert not any(user.made().values())


def test_a_secret_that_others_can_read(user: BadInput) -> None:
    open_secret = user.secret("open", user.lab.password("prod"), 0o644)
    config = user.config((str(user.lab.folder / "secrets" / "prod-password"), str(open_secret)))
    expect(user.run("replicate", "demo", config=config), 2, "is open to group or others (mode 0644)", "chmod 600")


def test_a_wrong_thumbprint_shows_both(user: BadInput) -> None:
    pinned = ":".join(["AB"] * 32)
    config = user.config((f'ca_file = "{user.lab.folder}/ca.pem"', f'thumbprint_sha256 = "{pinned}"'))
    real = user.lab.sites["prod"].sha256_thumbprint
    expect(user.run("replicate", "demo", config=config), 1, "is not the one whose thumbprint is pinned", pinned, real)


def test_an_authority_that_is_not_trusted(user: BadInput) -> None:
    config = user.config((f'ca_file = "{user.lab.folder}/ca.pem"', ""))
    expect(user.run("replicate", "demo", config=config), 1, "an authority that is not trusted", "set thumbprint_sha256")


def test_expired_and_self_signed_certificates(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    spec = small_spec()
    spec = replace(spec, prod=replace(spec.prod, certificate="expired"), dr=replace(spec.dr, certificate="self-signed"))
    user = BadInput(start_lab(spec), tmp_path)
    expect(user.run("vms", "prod"), 1, "the certificate has expired on 2", "set thumbprint_sha256")
    expect(user.run("vms", "dr"), 1, "the certificate is self-signed and not trusted", "set thumbprint_sha256")


def test_a_vcenter_that_is_not_there(user: BadInput) -> None:
    port = f"port = {user.lab.sites['prod'].port}"
    expect(user.run("plan", config=user.config((port, "port = 1"))), 1, "127.0.0.1:1: connection refused")
    nowhere = user.config(('server = "127.0.0.1"', 'server = "vcenter.invalid"'))
    expect(user.run("plan", config=nowhere), 1, "vcenter.invalid", "the name cannot be resolved", "DNS")


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("replicate", "dmo"), ('there is no job "dmo"; did you mean "demo"?', "jobs in")),
        (("plan", "demo", "--vm", "web-1"), ('no VM "web-1" in job demo; did you mean "web-01"?', "VMs: web-01")),
        (("vms", "prd"), ('there is no site "prd"; did you mean "prod"?', "sites in")),
        (("restore-points", "web-99"), ("the repository has no replica of web-99", "vrepl replicas")),
    ],
)
def test_a_name_that_nothing_has(arguments: tuple[str, ...], words: tuple[str, ...], user: BadInput) -> None:
    expect(user.run(*arguments), 10, *words)


def test_a_vm_that_the_site_does_not_have(user: BadInput) -> None:
    alone = user.config(('vms = ["web-01", "db-01", "app-01"]', 'vms = ["bd-01"]'))
    for command in ("plan", "replicate"):
        expect(user.run(command, config=alone), 10, "site prod has no VM named bd-01", "did you mean db-01")


@pytest.mark.parametrize("command", ["plan", "replicate"])
def test_a_datastore_that_the_target_does_not_have(command: str, user: BadInput) -> None:
    config = user.config(('target_datastore = "dr-vmfs-01"', 'target_datastore = "dr-vmfs-9"'))
    done = user.run(command, "demo", "--vm", "db-01", config=config)
    expect(done, 2, "site dr has no datastore dr-vmfs-9", "dr-vmfs-01")
    assert not any(user.made().values())


def test_five_mistakes_of_a_configuration_are_told_at_once(user: BadInput) -> None:
    config = user.folder / "five.toml"
    config.write_text(
        '[sites.prod]\nserver = "vc"\nusr = "u"\npassword = { file = "x" }\n[repository]\npath = "r"\n'
        '[jobs.web]\nsource = "prod"\ntarget = "dr"\nvms = []\ntarget_datastore = "d"\nretention = { last = 40 }\n'
    )
    done = user.run("replicate", "web", config=config)
    expect(
        done, 2, "5 mistakes",
        "sites.prod.user: is missing",
        'sites.prod.usr: unknown key; did you mean "user"?',
        "jobs.web.vms: must not be empty",
        "jobs.web.retention.last: must be at most 28",
        'jobs.web.target: there is no site "dr"',
    )  # fmt: skip
    told = json.loads(user.run("replicate", "web", "--json", config=config).stdout)
    assert len(told["error"]["problems"]) == 5


# -- VDDK ------------------------------------------------------------------------------------------------------------


def empty(lib64: Path, real: Path) -> None:
    del lib64, real


def a_text_file(lib64: Path, real: Path) -> None:
    del real
    (lib64 / "libvixDiskLib.so.8").write_text("<html>login required</html>" * 100)


def for_32_bits(lib64: Path, real: Path) -> None:
    content = bytearray(real.read_bytes())
    content[4] = 1  # EI_CLASS: ELFCLASS32
    (lib64 / "libvixDiskLib.so.8").write_bytes(content)


def another_library(lib64: Path, real: Path) -> None:
    """The loader's own libm: surely there, surely without VDDK's functions."""
    del real
    found = next(
        Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "libm.so" in line
    )
    shutil.copy(found, lib64 / "libvixDiskLib.so.8")


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (empty, ("no libvixDiskLib: looked for libvixDiskLib.so.9", "unpack VMware-vix-disklib")),
        (a_text_file, ("cannot be loaded: invalid ELF header", "no library for Linux x86-64")),
        (for_32_bits, ("cannot be loaded: wrong ELF class", "no library for Linux x86-64")),
        (another_library, ("is no libvixDiskLib: it has none of VDDK's functions", "unpack VMware-vix-disklib")),
    ],
)
def test_a_folder_that_holds_no_vddk(
    fill: Callable[[Path, Path], None], words: tuple[str, ...], user: BadInput
) -> None:
    lib64 = user.folder / "vddk" / "lib64"
    lib64.mkdir(parents=True)
    fill(lib64, user.lab.libdir() / "lib64" / "libvixDiskLib.so.8")
    libdir, wanted = f'libdir = "{user.lab.libdir()}"', f'libdir = "{user.folder / "vddk"}"\nengine = "vddk"'
    config = user.config((libdir, wanted))
    expect(user.run("replicate", "demo", config=config), 1, *words)
    assert not any(user.made().values()), "VDDK is tried before anything is made"
    checked = user.run("check", config=config)
    assert checked.returncode == 1
    assert "  FAILED  VDDK library of proxy bare: " in checked.stdout


# -- what cannot work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "replicate"])
def test_a_target_without_room(command: str, user: BadInput) -> None:
    user.lab.set("dr.datastore_free_mib=dr-vmfs-01:5")
    done = user.run(command, "demo", "--vm", "db-01")
    expect(done, 1, "datastore dr-vmfs-01 has 5 MiB free, and up to ", "choose another target_datastore")
    assert not any(user.made().values())


@pytest.mark.parametrize("command", ["plan", "replicate"])
def test_a_vm_that_cannot_be_replicated(command: str, user: BadInput) -> None:
    config = user.config(('vms = ["web-01", "db-01", "app-01"]', 'vms = ["legacy-01"]'))
    done = user.run(command, config=config)
    expect(done, 1, "disk 1 (Hard disk 2) is independent", 'on_not_replicable = "skip-disk"')
    assert not any(user.made().values())


def test_a_missing_privilege_by_name(user: BadInput) -> None:
    user.lab.set("prod.missing_privileges=VirtualMachine.State.CreateSnapshot")
    done = user.run("replicate", "demo", "--vm", "db-01")
    expect(done, 1, "db-01", "VirtualMachine.State.CreateSnapshot", "give the site's user the privilege")
    user.lab.set("prod.missing_privileges=none", "dr.missing_privileges=VirtualMachine.Provisioning.DiskRandomAccess")
    checked = user.run("check")
    assert checked.returncode == 1
    assert "VirtualMachine.Provisioning.DiskRandomAccess is missing on" in checked.stdout
    assert "write disks through VDDK" in checked.stdout


@pytest.mark.parametrize("command", ["plan", "replicate"])
@pytest.mark.parametrize("site", ["prod", "dr"])
def test_a_closed_nfc_port(site: str, command: str, user: BadInput) -> None:
    """Known before a snapshot exists, with the host's name."""
    there = json.loads(user.run("vms", "prod", "--json").stdout)["vms"]
    source = next(vm["host"] for vm in there if vm["name"] == "db-01")
    host = source if site == "prod" else user.lab.sites["dr"].hosts[0]
    user.lab.set(f"{site}.nfc_closed={host}")
    done = user.run(command, "demo", "--vm", "db-01")
    port = user.lab.sites[site].nfc_port
    expect(done, 1, f"the NFC port of ESXi host {host} cannot be reached: Connection refused (port {port})",
           "`vrepl check` tries each host")  # fmt: skip
    assert not any(user.made().values())


def test_a_connection_that_an_esxi_host_refuses_names_the_host(user: BadInput) -> None:
    """VixError 14009 of an open, where the port seemed open before."""
    config = user.config(("[jobs.demo]", "[jobs.demo]\nparallel_disks = 1"))
    user.lab.set("prod.fault=open:error:refused@1x1,vm=app-01")
    done = user.run("replicate", "demo", "--vm", "app-01", config=config)
    host = next(
        vm["host"] for vm in json.loads(user.run("vms", "prod", "--json").stdout)["vms"] if vm["name"] == "app-01"
    )
    assert done.returncode == 0, done.stderr
    assert f"(VixError 14009); the disk is reached through ESXi host {host}; trying again in 1 s" in done.stderr


# -- the repository --------------------------------------------------------------------------------------------------


def test_a_repository_of_a_newer_format(user: BadInput) -> None:
    user.run("replicas")
    newer = user.folder / "newer"
    shutil.copytree(user.lab.folder / "repository", newer)
    document = newer / "repository.json"
    content = json.loads(document.read_text())
    known = content["format"]
    document.write_text(json.dumps(with_checksum({**content, "format": known + 1})))
    before = document.read_bytes()
    config = user.config((str(user.lab.folder / "repository"), str(newer)))
    done = user.run("replicate", "demo", config=config)
    expect(
        done,
        1,
        f"repository.json has format {known + 1}; this vrepl knows formats up to {known}",
        "use the newer vrepl",
    )
    assert document.read_bytes() == before
    assert not any(user.made().values())


READ_ONLY = '"$0" -m vrepl --config "$2" replicas >/dev/null && mount -o remount,ro "$1"'
FULL = '"$0" -m vrepl --config "$2" replicas >/dev/null && { dd if=/dev/zero of="$1/full" bs=4k 2>/dev/null; true; }'


@pytest.mark.parametrize(
    ("then", "words"),
    [(READ_ONLY, ("Read-only file system", "remount it read-write")), (FULL, ("No space left", "free some space"))],
)
def test_a_repository_that_cannot_be_written(then: str, words: tuple[str, ...], user: BadInput) -> None:
    """On a tmpfs in a mount namespace of its own, so that no one else sees it."""
    repository = user.folder / "small"
    repository.mkdir()
    config = user.config((str(user.lab.folder / "repository"), str(repository)))
    mount = 'mount -t tmpfs -o size=64k,mode=700 tmpfs "$1"'
    namespace = ["unshare", "-rm", "sh", "-c"]
    arguments = [sys.executable, str(repository), str(config)]
    if shutil.which("unshare") is None or subprocess.run([*namespace, mount, *arguments], check=False).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs in a namespace")

    def run(command: str) -> subprocess.CompletedProcess[str]:
        script = f'{mount} && {then} && exec "$0" -m vrepl --config "$2" {command}'
        return judge(
            subprocess.run([*namespace, script, *arguments], capture_output=True, text=True, check=False, timeout=240)
        )

    expect(run("replicate demo"), 1, f"the repository {repository} cannot be written: {words[0]}", words[1])
    checked = run("check")
    assert checked.returncode == 1
    assert f"  FAILED  repository {repository}: " in checked.stdout
    assert not any(user.made().values())


def test_a_second_run_of_a_job(user: BadInput) -> None:
    """It ends with 11 and says who holds the lock; with --lock-wait it waits, and runs."""
    user.run("replicate", "demo", "--vm", "web-01")
    user.lab.write_random("prod", "web-01", 0, 0, 12 << 20, "second run")
    user.lab.set("bandwidth_mib_s=1")
    first = subprocess.Popen(
        [*VREPL, "-v", "--config", str(user.lab.config_file), "replicate", "demo", "--vm", "web-01"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert first.stderr is not None
    for line in first.stderr:
        if "web-01: transfer" in line:
            break
    refused = user.run("replicate", "demo")
    expect(refused, 11, f"job demo is locked by pid {first.pid} on ", "replicate demo --vm web-01", "wait until")
    expect(user.run("replicate", "demo", "--lock-wait", "1s"), 11, "job demo is locked by")
    user.lab.set("bandwidth_mib_s=0")
    waited = user.run("replicate", "demo", "--vm", "web-01", "--lock-wait", "10m")
    assert waited.returncode == 0, waited.stderr
    first.communicate(timeout=60)
    assert first.returncode == 0
