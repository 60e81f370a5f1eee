"""Scripts in guests of the lab, which really run: each ends as its policy says, and the guest is thawed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.vrepl_runs import Runs
from vrepl.model.guests import OUTPUT_KEPT, GuestLogin, Script
from vrepl.vsphere.session import SiteSettings
from vrepl.vsphere.site import VsphereSite
from vrepl_lab.lab import USER, Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

FREEZE = "#!/bin/sh\ntouch $HOME/frozen\necho frozen\n"
THAW = "#!/bin/sh\nrm -f $HOME/frozen\ndate +%s.%N >> $HOME/thawed\necho thawed\n"
BAD: dict[str, tuple[str, str]] = {
    "exits 3": ("echo no such volume >&2\nexit 3\n", "pre_freeze in the guest ended with status 3: no such volume"),
    "hangs": ("echo begun\nsleep 1000\n", "pre_freeze in the guest did not end within 2 s, and was ended"),
    "login": ("", "InvalidGuestLogin"),
}


class Guest:
    """The lab's web-01, with a job that has scripts."""

    def __init__(self, lab: Lab, scratch: Path) -> None:
        self.lab = lab
        self.runs = Runs(lab, scratch)
        self._scratch = scratch
        self._plain = lab.config_file.read_text()
        self.home = lab.guest_folder("prod", "web-01") / "root"
        (self.home / "thawed").unlink(missing_ok=True)

    def configure(self, freeze: str, *, policy: str = "fail", password: str = "guest") -> None:
        (self._scratch / "freeze.sh").write_text(freeze)
        (self._scratch / "thaw.sh").write_text(THAW)
        secret = self._scratch / "guest-password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        [job] = self.runs.json("config", "show")["config"]["jobs"]
        self.lab.config_file.write_text(
            f"{self._plain}\n[jobs.{job}.guest]\n"
            f'pre_freeze = "{self._scratch}/freeze.sh"\npost_thaw = "{self._scratch}/thaw.sh"\n'
            f'logins = {{ "web-*" = {{ user = "root", password = {{ file = "{secret}" }} }} }}\n'
            f'script_timeout = "2s"\non_script_failure = "{policy}"\n'
        )

    def restore(self) -> None:
        self.lab.config_file.write_text(self._plain)

    @property
    def frozen(self) -> bool:
        return (self.home / "frozen").exists()

    @property
    def thaws(self) -> int:
        return len((self.home / "thawed").read_text().splitlines()) if (self.home / "thawed").exists() else 0

    def replicate(self) -> dict[str, Any]:
        done = self.runs.cli("replicate", "--json")
        assert "guest-pass" not in done.stdout
        [vm] = json.loads(done.stdout)["vms"]
        found: dict[str, Any] = vm
        return found


@pytest.fixture(scope="module")
def lab(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    disk = DiskSpec(MIB, content="random", fill=0.5)
    return start_shared_lab(LabSpec.of_vms(VmSpec("web-01", disks=(disk,)), job_vms=["web-01"]))


@pytest.fixture
def guest(lab: Lab, tmp_path: Path) -> Iterator[Guest]:
    made = Guest(lab, tmp_path)
    yield made
    made.restore()
    lab.set("guests=none")


def left_in_the_guest(guest: Guest) -> list[str]:
    return [path.name for path in (guest.home.parent / "tmp").glob("vrepl-*")]


@pytest.mark.slow
def test_scripts_run_in_the_guest_and_what_they_print_is_told(guest: Guest) -> None:
    big = "i=0; while [ $i -lt 16 ]; do head -c 62500 /dev/zero | tr '\\0' x; i=$((i+1)); done; echo; echo the end\n"
    guest.configure(FREEZE + big)
    vm = guest.replicate()
    assert vm["result"] == "success", vm
    freeze, thaw = vm["scripts"]
    assert (freeze["moment"], freeze["place"], freeze["status"], freeze["output_cut"]) == (
        "pre_freeze",
        "guest",
        0,
        True,
    )
    assert len(freeze["output"]) == OUTPUT_KEPT
    assert freeze["output"].endswith("x\nthe end\n")
    assert (thaw["moment"], thaw["status"], thaw["output"]) == ("post_thaw", 0, "thawed\n")
    assert (guest.frozen, guest.thaws, left_in_the_guest(guest)) == (False, 1, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("exits 3", "continue"),
        ("hangs", "fail"),
        ("login", "fail"),
        pytest.param("exits 3", "fail", marks=pytest.mark.long),
        pytest.param("hangs", "continue", marks=pytest.mark.long),
        pytest.param("login", "continue", marks=pytest.mark.long),
    ],
)
def test_a_script_that_goes_wrong_ends_as_its_policy_says(guest: Guest, name: str, policy: str) -> None:
    code, said = BAD[name]
    guest.configure(FREEZE + code, policy=policy, password="wrong" if name == "login" else "guest")
    vm = guest.replicate()
    if policy == "fail":
        assert vm["result"] == "failed"
        assert vm["restore_point"] is None
        assert said in vm["error"]
    else:
        assert vm["result"] == "success", vm
        assert [note for note in vm["notes"] if said in note]
    assert (guest.frozen, guest.thaws) == (False, 0 if name == "login" else 1)
    assert left_in_the_guest(guest) == []
    if name == "login":
        assert all("logins of [jobs.NAME.guest]" in one["error"] for one in vm["scripts"])


@pytest.mark.long
def test_a_quiesced_snapshot_that_takes_too_long_is_given_up_and_removed(guest: Guest) -> None:
    """And the guest is thawed when its time has passed, not when vSphere is done."""
    guest.replicate()  # the first snapshot after change tracking was switched on is not quiesced
    guest.configure(FREEZE, policy="continue")
    with guest.lab.config_file.open("a") as file:
        file.write('quiesce_timeout = "1s"\nfrozen_at_most = "1s"\n')
    guest.lab.set("prod.snapshot_ms=2500")
    vm = guest.replicate()
    guest.lab.set("prod.snapshot_ms=0")
    assert vm["result"] == "success", (vm["error"], vm["notes"])
    assert vm["consistency"] == "crash"
    assert [note for note in vm["notes"] if "has not ended within 1 s" in note and "could not be quiesced" in note], vm[
        "notes"
    ]
    assert [note for note in vm["notes"] if "had to be thawed after 1 s" in note], vm["notes"]
    assert (guest.frozen, guest.thaws) == (False, 1)


@pytest.mark.slow
def test_a_script_that_was_laid_ready_runs_by_itself_unless_it_is_forgotten(guest: Guest) -> None:
    """Whoever froze the guest may be dead: then nobody asks for anything any more."""
    settings = SiteSettings(
        name="prod",
        server="127.0.0.1",
        port=guest.lab.sites["prod"].port,
        user=USER,
        password=guest.lab.password("prod"),
        ca_file=guest.lab.folder / "ca.pem",
    )
    login = GuestLogin("root", "guest")
    with VsphereSite(settings) as site:
        [vm] = site.find_vms(["web-01"])
        site.run_in_guest_later(vm.ref, login, Script("thaw.sh", THAW.encode()), seconds=1)
        forgotten = site.run_in_guest_later(vm.ref, login, Script("thaw.sh", THAW.encode()), seconds=1)
        site.forget_in_guest(vm.ref, login, forgotten)
        site.forget_in_guest(vm.ref, login, forgotten)
        assert guest.thaws == 0
    until = time.monotonic() + 30
    while not guest.thaws and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    assert guest.thaws == 1
    assert forgotten.folder.rpartition("/")[2] not in left_in_the_guest(guest)
