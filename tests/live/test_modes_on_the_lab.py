"""The right road for every disk, on the lab: what is chosen and why, what follows a failure, what is never passed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named
from tests.support.vrepl_runs import GRAIN, Runs, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, PROXY_VM, DiskSpec, LabSpec, VmSpec

THICK = DiskSpec(6 * MIB, content="random", fill=0.5, thin=False)
THIN = DiskSpec(4 * MIB, content="random", fill=0.5)
StartRuns = Callable[..., Runs]


@pytest.fixture
def start_runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> StartRuns:
    def start(*disks: DiskSpec) -> Runs:
        return Runs(start_lab(LabSpec.of_vms(VmSpec("web-01", disks=disks), job_vms=["web-01"])), tmp_path)

    return start


def roads(report: Any) -> list[tuple[str, str]]:
    return [(disk["transport"]["source"]["mode"], disk["transport"]["target"]["mode"]) for disk in report["disks"]]


def why_not(report: Any, disk: int, side: str, mode: str) -> str:
    ruled_out = report["disks"][disk]["transport"][side]["ruled_out"]
    return next(str(one["reason"]) for one in ruled_out if one["mode"] == mode)


def assert_same(runs: Runs, report: Any) -> None:
    for disk in report["disks"]:
        assert runs.restore_point(report["restore_point"], disk["index"]) == runs.source(disk["index"])
    assert runs.lab.status()["prod"]["locks"] == runs.lab.status()["dr"]["locks"] == []
    for site in ("prod", "dr"):
        assert disks_of_proxy(runs, site) == 1, "nothing stays attached to the proxy VM"


def disks_of_proxy(runs: Runs, site: str) -> int:
    with plain_api.session(runs.lab, site) as instance:
        devices = vm_named(instance, PROXY_VM).config.hardware.device
        return sum(isinstance(one, vim.vm.device.VirtualDisk) for one in devices)


def replica_snapshots(runs: Runs) -> list[str]:
    with plain_api.session(runs.lab, "dr") as instance:
        info = vm_named(instance, "web-01-replica").snapshot
        return [one.name for one in info.rootSnapshotList] if info else []


@pytest.mark.parametrize(
    ("proxy", "first", "second"),
    [
        ("hotadd", [("hotadd", "hotadd"), ("hotadd", "hotadd")], ("hotadd", "hotadd")),
        ("san", [("san", "san"), ("san", "nbdssl")], ("san", "nbdssl")),
        ("bare", [("nbdssl", "nbdssl"), ("nbdssl", "nbdssl")], ("nbdssl", "nbdssl")),
    ],
)
def test_each_proxy_takes_its_best_road_and_says_why_not_a_better_one(
    start_runs: StartRuns, proxy: str, first: list[tuple[str, str]], second: tuple[str, str]
) -> None:
    runs = start_runs(THICK, THIN)
    runs.set_in_job(f'proxy = "{proxy}"')
    plan = runs.plan()
    report = runs.replicate()
    assert roads(plan) == roads(report) == first
    assert_same(runs, report)
    assert replica_snapshots(runs) == [f"vrepl {report['restore_point']}"]
    runs.write(3)
    plan = runs.plan()
    report = runs.replicate()
    assert roads(plan) == roads(report) == [second, second]
    assert moved(report) == GRAIN
    assert_same(runs, report)
    for disk in (0, 1):
        for side, used in zip(("source", "target"), second, strict=True):
            transport = plan["disks"][disk]["transport"][side]
            assert transport["mode"] == used
            assert transport["reason"]
            assert {one["mode"] for one in transport["ruled_out"]} >= {"nbd"}
    if proxy == "san":
        assert "before the first restore point" in why_not(plan, 0, "target", "san")


def test_hotadd_that_fails_at_the_hundredth_write_goes_on_over_nbdssl(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(160 * MIB, content="random", fill=0.9))
    runs.set_in_job('proxy = "hotadd"')
    runs.lab.set("dr.bandwidth_mib_s=150", "dr.fault=write:error:fail@100,mode=hotadd,vm=web-01-replica")
    report = runs.replicate()
    runs.lab.set("faults=none", "bandwidth_mib_s=0")
    assert_same(runs, report)
    [disk] = report["disks"]
    target = disk["transport"]["target"]
    assert (target["chosen"], target["mode"]) == ("hotadd", "nbdssl")
    assert [one.split(":")[0] for one in target["fallbacks"]] == ["hotadd failed"]
    assert disk["transport"]["source"]["mode"] == "hotadd"
    assert disk["transport"]["source"]["fallbacks"] == []
    assert disk["attempts"] == 2
    assert disk["bytes_moved"] < 215 * MIB, "it went on from a checkpoint, not from the start"
    print(f"\nHotAdd failed at write 100 of 144: {disk['bytes_moved'] / MIB:.1f} MiB written in all")


def test_a_data_mover_that_dies_over_hotadd_costs_no_more_than_an_attempt(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(24 * MIB, content="random"))
    runs.set_in_job('proxy = "hotadd"')
    runs.lab.set("dr.fault=write:crash@8,vm=web-01-replica", "lock_linger_s=600")
    report = runs.replicate()
    runs.lab.set("faults=none")
    assert roads(report) == [("hotadd", "hotadd")]
    assert report["disks"][0]["attempts"] > 1
    assert_same(runs, report)


def test_a_mode_that_fails_at_open_is_tried_once_for_a_datastore(start_runs: StartRuns) -> None:
    runs = start_runs(*[THIN] * 3)
    runs.set_in_job('proxy = "hotadd"', "parallel_disks = 1")
    runs.lab.set("fault=open:error:no_access@1x*,mode=hotadd")
    report = runs.replicate()
    runs.lab.set("faults=none")
    assert roads(report) == [("nbdssl", "nbdssl")] * 3
    fallbacks = [len(disk["transport"][side]["fallbacks"]) for disk in report["disks"] for side in ("source", "target")]
    assert sorted(fallbacks) == [0, 0, 0, 0, 1, 1]
    assert_same(runs, report)


def test_a_run_killed_while_it_writes_over_san_is_finished_by_the_next(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(64 * MIB, content="random", thin=False))
    runs.set_in_job('proxy = "san"')
    runs.lab.set("lock_linger_s=0", "dr.bandwidth_mib_s=40")
    runs.kill_when(lambda: runs.written_on_target() > 24 * MIB)
    assert any(name.startswith("vrepl-san-") for name in replica_snapshots(runs))
    runs.lab.set("bandwidth_mib_s=0")
    runs.write(1)
    report = runs.replicate()
    assert roads(report) == [("san", "san")]
    assert report["disks"][0]["resumed"]
    assert moved(report) < 64 * MIB
    assert_same(runs, report)
    assert replica_snapshots(runs) == [f"vrepl {report['restore_point']}"]


def killed_over_hotadd(start_runs: StartRuns) -> Runs:
    """A run whose disks hang on the proxy VM still, for it was killed in the middle of its transfer."""
    runs = start_runs(DiskSpec(64 * MIB, content="random"))
    runs.set_in_job('proxy = "hotadd"')
    runs.lab.set("dr.bandwidth_mib_s=40", "lock_linger_s=600")
    runs.kill_when(lambda: runs.written_on_target() > 8 * MIB)
    assert disks_of_proxy(runs, "dr") > 1
    return runs


def test_what_a_killed_run_left_on_the_proxy_is_detached_by_the_next(start_runs: StartRuns) -> None:
    runs = killed_over_hotadd(start_runs)
    [hotadd] = runs.lab.status()["dr"]["proxies"]
    assert (hotadd["proxy"], hotadd["vm"], len(hotadd["disks"])) == ("hotadd", PROXY_VM, disks_of_proxy(runs, "dr"))
    runs.lab.set("bandwidth_mib_s=0")
    report = runs.replicate()
    assert report["result"] == "success"
    assert any("by HotAdd" in note for note in report["notes"])
    assert_same(runs, report)


def test_what_a_killed_run_left_on_its_proxy_is_detached_by_a_run_over_another(start_runs: StartRuns) -> None:
    runs = killed_over_hotadd(start_runs)
    runs.lab.set("bandwidth_mib_s=0")
    runs.set_in_job('proxy = "bare"')
    report = runs.replicate()
    assert any("by HotAdd" in note for note in report["notes"])
    assert_same(runs, report)
    assert not any("by HotAdd" in note for note in runs.replicate()["notes"])


def test_what_a_killed_verification_left_on_the_proxy_is_detached(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(24 * MIB, content="random"))
    runs.set_in_job('proxy = "hotadd"')
    runs.replicate()

    def kill_verification() -> None:
        runs.lab.set("dr.bandwidth_mib_s=4", "lock_linger_s=600")
        runs.kill_when(lambda: disks_of_proxy(runs, "dr") > 1, "verify")
        runs.lab.set("bandwidth_mib_s=0")
        assert disks_of_proxy(runs, "dr") > 1

    kill_verification()
    verified = runs.json("verify")
    assert [disk["mode"] for disk in verified["vms"][0]["disks"]] == ["hotadd"]
    assert disks_of_proxy(runs, "dr") == 1
    kill_verification()
    runs.write(1)
    report = runs.replicate()
    assert any("by HotAdd" in note for note in report["notes"])
    assert roads(report) == [("hotadd", "hotadd")]
    assert_same(runs, report)


def test_san_that_fails_in_mid_copy_leaves_the_disk_to_the_next_mode(start_runs: StartRuns) -> None:
    runs = start_runs(THICK)
    runs.set_in_job('proxy = "san"')
    runs.lab.set("dr.fault=write:error:fail@2,mode=san")
    report = runs.replicate()
    runs.lab.set("faults=none")
    assert roads(report) == [("san", "nbdssl")]
    assert "san failed" in report["disks"][0]["transport"]["target"]["fallbacks"][0]
    assert_same(runs, report)
    assert replica_snapshots(runs) == [f"vrepl {report['restore_point']}"]


def test_twenty_disks_stay_within_the_budget_of_a_host(start_runs: StartRuns) -> None:
    runs = start_runs(*[DiskSpec(8 * MIB, content="random") for _ in range(14)], *[THIN] * 6)
    runs.set_in_job("parallel_disks = 20")
    config = runs.lab.config_file
    config.write_text(config.read_text().replace("[proxies.bare]", "[proxies.bare]\nslots = 20"))
    runs.lab.set("bandwidth_mib_s=40", "nfc_limit_mib=32")
    report = runs.replicate()
    runs.lab.set("bandwidth_mib_s=0")
    assert report["result"] == "success"
    assert [disk["attempts"] for disk in report["disks"]] == [1] * 20
    peaks = [max(host["peak_kib"] for host in site["nfc"]) for site in runs.lab.status().values()]
    assert all(16 * 1024 < peak <= 32 * 1024 for peak in peaks), peaks
    print(f"\n20 disks at once, budget 32 MiB: peak NFC memory {[peak / 1024 for peak in peaks]} MiB (prod, dr)")


def test_nbd_is_never_used_unless_it_is_listed(start_runs: StartRuns) -> None:
    runs = start_runs(THIN)
    runs.lab.set("fault=open:error:no_access@1x*,mode=nbdssl")
    report = runs.replicate(code=1)
    assert roads(report) == [("nbdssl", "nbdssl")]
    assert "access rights" in report["error"]
    runs.set_in_job('transport = { source = ["nbdssl", "nbd"], target = ["nbdssl", "nbd"] }')
    report = runs.replicate()
    runs.lab.set("faults=none")
    assert roads(report) == [("nbd", "nbd")]
    assert_same(runs, report)


def test_check_names_a_closed_port_a_missing_privilege_and_an_unseen_lun(start_runs: StartRuns) -> None:
    runs = start_runs(THIN)
    runs.set_in_job('proxy = "san"')
    with plain_api.session(runs.lab) as instance:
        host = vm_named(instance, "web-01").runtime.host.name
        [store] = [one for one in vm_named(instance, "web-01").datastore if one.name == "prod-vmfs-01"]
        lun = store.info.vmfs.extent[0].diskName
    for name in (runs.lab.folder / "proxies/san/sysroot/dev/disk/by-id").iterdir():
        if lun.removeprefix("naa.") in name.name:
            name.unlink()
    runs.lab.set(f"prod.nfc_closed={host}", "dr.missing_privileges=VirtualMachine.State.RevertToSnapshot")
    printed = runs.cli("check").stdout
    runs.lab.set("prod.nfc_closed=none", "dr.missing_privileges=none")
    words = " ".join(printed.split())
    assert f"{host}:" in words
    assert "cannot be reached" in words
    assert "VirtualMachine.State.RevertToSnapshot is missing" in words
    assert f"proxy san does not see {lun} behind prod-vmfs-01" in words


def test_check_names_what_the_user_lacks_on_the_proxy_vm_and_runs_take_the_next_mode(start_runs: StartRuns) -> None:
    runs = start_runs(THIN)
    runs.set_in_job('proxy = "hotadd"')
    assert "the proxy is VM vrepl-proxy" in " ".join(runs.cli("check").stdout.split())
    runs.lab.set("prod.missing_privileges=VirtualMachine.Config.AddExistingDisk,Datastore.FileManagement")
    words = " ".join(runs.cli("check").stdout.split())
    report = runs.replicate()
    runs.lab.set("prod.missing_privileges=none")
    assert "WARNING HotAdd at prod: VirtualMachine.Config.AddExistingDisk is missing on" in words
    assert f"VirtualMachine {PROXY_VM}" in words
    assert "Datastore.FileManagement is missing on Datastore prod-vmfs-01" in words
    assert roads(report) == [("nbdssl", "hotadd")]
    assert_same(runs, report)
