"""What a lab is made of: the inventory, the guests' file systems, the proxies, the certificates, the folder."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from vrepl_lab import configuration, guests, processes, proxies
from vrepl_lab.certificates import Authority
from vrepl_lab.errors import LabError
from vrepl_lab.folder import read_state, reserved, write_state
from vrepl_lab.guests import find_tool, make_images, random_bytes, random_pieces
from vrepl_lab.lab import Lab, clear
from vrepl_lab.processes import ProcessIdentity
from vrepl_lab.spec import (
    MIB,
    PROXY_VM,
    DiskSpec,
    LabSpec,
    ProxySpec,
    SiteSpec,
    VmSpec,
    demo_spec,
    inventory,
    naa,
    with_units,
)


def inventory_of(spec: LabSpec, site: str = "prod") -> dict[str, object]:
    return inventory(site, spec.sites[site], seed=spec.seed, network=(21, 22), images={})


def needs_mke2fs() -> None:
    try:
        find_tool("mke2fs")
    except LabError as error:
        pytest.skip(str(error))


def test_the_demo_holds_what_later_checks_rely_on() -> None:
    spec = demo_spec(256)
    vms = {vm.name: vm for vm in spec.prod.vms}
    assert vms["web-01"].disks[0].capacity == 256 * MIB
    assert vms["web-01"].disks[0].fill >= 0.75
    assert len(vms["db-01"].disks) == 2
    assert vms["app-01"].power == "poweredOff"
    assert vms["legacy-01"].disks[1].mode == "independent_persistent"
    assert spec.names_of_job_vms == ["web-01", "db-01", "app-01"]


def test_names_uuids_and_macs_do_not_repeat_within_a_site() -> None:
    entries = inventory_of(demo_spec(64, extra_vms=30))["vms"]
    assert isinstance(entries, list)
    assert len(entries) == 35
    for key in ("name", "uuid", "instance_uuid"):
        assert len({entry[key] for entry in entries}) == len(entries)
    assert len({nic["mac"] for entry in entries for nic in entry["nics"]}) == len(entries)


def test_the_same_seed_makes_the_same_inventory() -> None:
    assert inventory_of(demo_spec()) == inventory_of(demo_spec())
    assert inventory_of(demo_spec()) != inventory_of(replace(demo_spec(), seed="other"))


def test_the_proxy_vm_has_one_bios_uuid_in_both_sites() -> None:
    spec = demo_spec()
    entries = {site: inventory_of(spec, site) for site in spec.sites}
    uuids = {proxies.bios_uuid_of(PROXY_VM, {site: entry}) for site, entry in entries.items()}
    assert len(uuids) == 1
    assert None not in uuids


def test_units_are_free_ones_and_never_the_controllers_own() -> None:
    vm = VmSpec("many", disks=[DiskSpec(MIB, content="empty", unit=1)] + [DiskSpec(MIB, content="empty")] * 8)
    assert [unit for _, unit in with_units(vm)] == [1, 0, 2, 3, 4, 5, 6, 8, 9]


def test_equal_names_are_refused() -> None:
    with pytest.raises(LabError, match="not unique"):
        inventory_of(LabSpec(prod=SiteSpec(vms=(VmSpec("a"), VmSpec("a")))))


@pytest.mark.parametrize("capacity", [0, -512, 1000])
def test_a_capacity_that_no_disk_has_is_refused(capacity: int) -> None:
    with pytest.raises(LabError, match="multiple of 512"):
        DiskSpec(capacity)


def test_a_guest_holds_a_clean_file_system_with_incompressible_files(tmp_path: Path) -> None:
    needs_mke2fs()
    vm = VmSpec("guest", disks=(DiskSpec(16 * MIB, fill=0.75, zeroed=MIB),))
    image = make_images("prod", SiteSpec(vms=(vm,)), tmp_path, "seed")["guest", 0]
    assert image.stat().st_size == 16 * MIB
    assert image.stat().st_blocks * 512 >= 0.75 * 16 * MIB + MIB
    checked = subprocess.run([find_tool("e2fsck"), "-fn", image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    listed = subprocess.run(
        [find_tool("debugfs"), "-R", "cat /etc/hostname", image], capture_output=True, text=True, check=True
    )
    assert listed.stdout == "guest\n"


def test_without_mke2fs_it_says_which_package_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(guests, "TOOL_FOLDERS", ())
    with pytest.raises(LabError, match="mke2fs was not found") as caught:
        Lab.start(tmp_path / "lab", demo_spec(16))
    assert "e2fsprogs" in (caught.value.hint or "")
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize("capacity", [512, MIB + 512, 3 * 65536])
def test_a_random_disk_is_as_long_as_its_capacity(tmp_path: Path, capacity: int) -> None:
    vm = VmSpec("odd", disks=(DiskSpec(capacity, content="random", fill=0.5),))
    image = make_images("prod", SiteSpec(vms=(vm,)), tmp_path, "seed")["odd", 0]
    content = image.read_bytes()
    assert len(content) == capacity
    assert any(content[-512:])


def test_random_bytes_are_one_stream_wherever_it_is_cut() -> None:
    whole = random_bytes("seed", 1000)
    assert b"".join(random_pieces("seed", 1000, piece=333)) == whole
    assert random_bytes("seed", 100, 17) == whole[17:117]
    assert random_bytes("other", 1000) != whole


@pytest.mark.parametrize(
    ("kind", "trusted", "valid"), [("good", True, True), ("expired", True, False), ("self-signed", False, True)]
)
def test_certificates(kind: str, trusted: bool, valid: bool) -> None:
    authority = Authority()
    made = authority.issue(("localhost", "127.0.0.1"), kind)
    certificate = x509.load_pem_x509_certificate(made.pem)
    ca = x509.load_pem_x509_certificate(authority.pem)
    assert (certificate.issuer == ca.subject) is trusted
    assert (certificate.not_valid_after_utc > ca.not_valid_before_utc) is valid
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert len(made.sha1_thumbprint) == 59


def test_a_context_that_trusts_the_ca_loads_it(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(Authority().pem)
    assert ssl.create_default_context(cafile=str(tmp_path / "ca.pem")).cert_store_stats()["x509_ca"] == 1


def test_a_san_proxy_sees_luns_by_udevs_names(tmp_path: Path) -> None:
    lun = naa("some", "lun")
    proxies.make_sysroot(tmp_path, ProxySpec("san", luns=True), bios_uuid=None, luns=[lun], seed="s")
    proxies.make_sysroot(tmp_path, ProxySpec("bare"), bios_uuid=None, luns=[lun], seed="s")
    digits = lun.removeprefix("naa.")
    assert len(digits) == 32
    by_id = tmp_path / "proxies/san/sysroot/dev/disk/by-id"
    assert {path.name for path in by_id.iterdir()} == {f"wwn-0x{digits}", f"scsi-3{digits}"}
    assert all(path.resolve().exists() for path in by_id.iterdir())
    assert not list((tmp_path / "proxies/bare/sysroot/dev/disk/by-id").iterdir())


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "prod").mkdir()
    with pytest.raises(LabError, match="not a lab's folder"):
        clear(tmp_path)
    assert (tmp_path / "prod").is_dir()


def test_a_stopped_labs_folder_is_cleared_of_its_own_files_only(tmp_path: Path) -> None:
    write_state(tmp_path, {})
    (tmp_path / "prod").mkdir()
    (tmp_path / "export.img").write_text("mine")
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["export.img"]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LabError, match="not a folder"), reserved(tmp_path / "file"):
        pass


@pytest.mark.parametrize("text", ["", "{", '{"kind": "other", "sites": {}}', '{"kind": "vrepl-lab", "sites": 3}', "[]"])
def test_what_is_no_state_of_a_lab_is_not_taken_for_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "lab.json").write_text(text)
    assert read_state(tmp_path) is None


def test_only_the_very_process_that_was_started_is_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    reused = replace(identity, started=identity.started - 1)
    other_boot = replace(identity, boot_id="another")
    assert not processes.end(reused)
    assert not processes.end(other_boot)
    assert child.poll() is None
    assert processes.end(identity, child)
    assert child.poll() is not None
    assert ProcessIdentity.of(os.getpid()) is not None


def test_strings_are_quoted_as_toml_wants_them(tmp_path: Path) -> None:
    import tomllib

    lab = tmp_path / 'odd "name'
    sites = [configuration.SiteAccess(name, "127.0.0.1", 4443, "user", 902) for name in ("prod", "dr")]
    text = configuration.configuration(
        lab, sites, [ProxySpec("bare")], [configuration.JobText("demo", ["web-01"])], target_host="127.1.2.3"
    )
    value = tomllib.loads(text)
    assert value["repository"]["path"] == str(lab / "repository")
    assert value["jobs"]["demo"]["vms"] == ["web-01"]
