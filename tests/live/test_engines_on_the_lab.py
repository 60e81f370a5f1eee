"""Whole runs without VDDK, and runs that alternate between VDDK and vrepl's own engine: on the lab, from outside."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pyVmomi import vim

import vrepl.vsphere.site
from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import GRAIN, Runs, kinds, moved, until
from vrepl import trace
from vrepl.cli import main
from vrepl.ports import NfcTicket
from vrepl.vsphere.tickets import ticket
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

pytestmark = pytest.mark.slow

StartRuns = Callable[..., Runs]


@pytest.fixture
def start_runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> StartRuns:
    def start(mib: int = 16, *, vddk: bool = False, hosts: int = 1, esx: bool = False) -> Runs:
        disk = DiskSpec(mib * MIB, content="random", fill=0.7)
        spec = LabSpec.of_vms(VmSpec("web-01", disks=(disk,)), job_vms=["web-01"])
        spec = replace(spec, vddk=vddk, prod=replace(spec.prod, hosts=hosts, esx=esx), dr=replace(spec.dr, esx=esx))
        runs = Runs(start_lab(spec), tmp_path)
        runs.lab.set("lock_linger_s=1")
        return runs

    return start


def engines(report: Any) -> set[tuple[str, str]]:
    return {
        (side["engine"], side["mode"])
        for disk in report["disks"]
        for side in disk["transport"].values()
        if side["mode"] is not None
    }


def assert_clean(runs: Runs) -> None:
    """No disk open, no snapshot on the source."""
    for site in ("prod", "dr"):
        locks = runs.lab.status()[site]["locks"]
        assert [lock for lock in locks if not lock["lingering"]] == []
    (vm,) = [vm for vm in runs.json("vms", "prod")["vms"] if vm["name"] == runs.vm]
    assert vm["snapshots"] == []


def assert_sealed(runs: Runs, report: Any) -> None:
    assert runs.restore_point(report["restore_point"]) == runs.source()
    assert_clean(runs)


def test_without_vddk_everything_works_over_nbdssl(start_runs: StartRuns) -> None:
    runs = start_runs()
    assert not list(runs.lab.folder.rglob("libvixDiskLib*")), "there is no VDDK anywhere"
    planned = runs.plan()
    for side in planned["disks"][0]["transport"].values():
        assert (side["engine"], side["mode"]) == ("own", "nbdssl")
        assert 'engine = "own"' in side["reason"]
        assert "nothing blocks a migration" in side["reason"]
        ruled_out = {one["mode"]: one["reason"] for one in side["ruled_out"]}
        assert "takes VDDK" in ruled_out["san"]
        assert "is no VM of this site" in ruled_out["hotadd"]
    runs.lab.set("nfc_closed=none")
    checked = runs.cli("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "warning" not in checked.stdout.lower(), "it is green without VDDK"
    assert "vrepl's own NFC and HotAdd" in checked.stdout
    first = runs.replicate()
    assert (kinds(first), engines(first)) == (["full"], {("own", "nbdssl")})
    assert_sealed(runs, first)
    runs.write(3, 5)
    second = runs.replicate()
    assert kinds(second) == ["incremental"]
    assert moved(second) == 5 * GRAIN
    assert_sealed(runs, second)
    assert runs.json("verify")["vms"][0]["result"] == "success"


def test_runs_alternate_between_the_engines(start_runs: StartRuns) -> None:
    """Incremental each time, equal bytes each time, digests that each takes from the other."""
    runs = start_runs(vddk=True)
    for number, engine in enumerate(("vddk", "own", "vddk")):
        runs.set_engine(engine)
        runs.write(7 * number, 2 + number, seed=f"run {number}")
        report = runs.replicate()
        assert {name for name, _ in engines(report)} == {engine}
        assert kinds(report) == (["full"] if number == 0 else ["incremental"])
        if number:
            assert moved(report) == (2 + number) * GRAIN
        assert_sealed(runs, report)
    for engine in ("vddk", "own"):
        runs.set_engine(engine)
        assert runs.json("verify")["vms"][0]["result"] == "success"


def test_hosts_without_a_vcenter_give_tickets_too(start_runs: StartRuns) -> None:
    """`ha-nfc-service`, a ticket that names no host, and the service `nfc`."""
    runs = start_runs(8, esx=True)
    report = runs.replicate()
    assert engines(report) == {("own", "nbdssl")}
    assert_sealed(runs, report)


@pytest.mark.parametrize(("source", "target"), [("own", "vddk"), pytest.param("vddk", "own", marks=pytest.mark.long)])
def test_each_side_may_have_its_own_engine(start_runs: StartRuns, source: str, target: str) -> None:
    runs = start_runs(vddk=True)
    runs.set_in_job(
        'proxy = { source = "bare", target = "san" }', 'transport = { source = ["nbdssl"], target = ["nbdssl"] }'
    )
    runs.set_engine(source, "proxies.bare")
    runs.set_engine(target, "proxies.san")
    report = runs.replicate()
    sides = report["disks"][0]["transport"]
    assert (sides["source"]["engine"], sides["target"]["engine"]) == (source, target)
    assert_sealed(runs, report)


FEW_FAULTS = (
    "dr.fault=close:lost",
    "prod.api_fault=NfcGetVmFiles:expire_session",
    "prod.fault=read:lost@6",
    "dr.fault=write:crash@4",
)
FAULTS = (
    "prod.fault=open:error:locked",
    "prod.fault=read:error:connection_lost@4",
    "prod.fault=read:crash@5",
    "prod.fault=query_allocated:error:not_supported@1x*",
    "dr.fault=write:error:connection_lost@3",
    "dr.fault=write:lost@2",
    "dr.fault=open:error:no_memory",
    "prod.api_fault=NfcGetVmFiles:http_503",
    "dr.api_fault=NfcRandomAccessOpenDisk:drop_reply",
    "dr.fault=flush:freeze:2000",
)


@pytest.mark.parametrize(
    "faults",
    [FEW_FAULTS, pytest.param(FAULTS, marks=[pytest.mark.long, pytest.mark.timeout(1200)])],
    ids=["few", "all"],
)
def test_what_goes_wrong_in_mid_run_is_survived(start_runs: StartRuns, faults: tuple[str, ...]) -> None:
    runs = start_runs(8)
    runs.set_in_job('readback = "all"')
    for number, fault in enumerate(faults):
        runs.write(2 * number, 60, seed=fault)
        runs.lab.set("faults=none", fault)
        report = runs.replicate()
        assert report["result"] == "success", (fault, report)
        runs.lab.set("faults=none")
        assert_sealed(runs, report)


@pytest.mark.long
def test_a_host_without_memory_gets_smaller_buffers(start_runs: StartRuns) -> None:
    runs = start_runs(8)
    runs.lab.set("nfc_limit_mib=1")
    report = runs.replicate()
    assert report["result"] == "success"
    assert_sealed(runs, report)


def test_a_vm_that_moves_in_mid_run_is_followed(start_runs: StartRuns) -> None:
    """Its session is lost with the move; the next ticket names the host where the VM is then."""
    runs = start_runs(16, hosts=2)
    runs.lab.set("prod.bandwidth_mib_s=4")
    process = runs.start()
    until(lambda: bool(runs.lab.status()["prod"]["locks"]), process)
    [lock] = runs.lab.status()["prod"]["locks"]
    with plain_api.session(runs.lab) as api:
        vm = vm_named(api, "web-01")
        [other] = [host for host in vm.runtime.host.parent.host if host.name != lock["host"]]
        wait(vm.RelocateVM_Task(spec=vim.vm.RelocateSpec(host=other)))
        assert vm.runtime.host.name == other.name
    runs.lab.set("prod.fault=read:lost", "prod.bandwidth_mib_s=0")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    assert_clean(runs)
    [report] = runs.json("restore-points", "web-01")["restore_points"]
    assert runs.restore_point(report["id"]) == runs.source()


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("second-certificate", "shows another certificate than the first"),
        pytest.param("first-certificate", "not that of the ticket", marks=pytest.mark.long),
        pytest.param("told-certificate", "calls its certificate", marks=pytest.mark.long),
        pytest.param("cut", "closed by the host", marks=pytest.mark.long),
        pytest.param("lie", "is not NFC as vrepl knows it", marks=pytest.mark.long),
    ],
)
def test_a_host_that_cannot_be_trusted_is_named_and_nothing_is_written(
    start_runs: StartRuns, trouble: str, says: str
) -> None:
    runs = start_runs(8)
    runs.lab.set(f"prod.nfc_trouble={trouble}")
    report = runs.replicate(code=1)
    assert says in report["error"]
    assert report["hint"]
    assert runs.written_on_target() == 0
    runs.lab.set("prod.nfc_trouble=none")
    assert_sealed(runs, runs.replicate())


@pytest.mark.long
def test_no_ticket_token_or_password_stands_anywhere(
    start_runs: StartRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs, one of which fails, and a verification, in this process, which so knows every secret that it was told."""
    runs = start_runs(8)
    secrets = {runs.lab.password(site) for site in ("prod", "dr")}
    tickets: list[str] = []

    def spy(session: Any, *where: Any, **how: Any) -> NfcTicket:
        given = ticket(session, *where, **how)
        tickets.append(given.session_id)
        cookie = str(session._stub.cookie)
        secrets.update((given.session_id, cookie.partition("=")[2].partition(";")[0].strip('"')))
        return given

    monkeypatch.setattr(vrepl.vsphere.site, "ticket", spy)
    monkeypatch.setenv(trace.VARIABLE, str(tmp_path / "trace.jsonl"))
    said: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    said.append(file.read_bytes().decode("utf-8", "replace"))
                    said.append(file.with_name("environ").read_bytes().decode("utf-8", "replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number, (command, code) in enumerate(
            [("replicate demo", 0), ("replicate demo", 1), ("verify", 0), ("report --json", 0), ("check", 0)]
        ):
            runs.write(number, 3)
            runs.lab.set("prod.nfc_trouble=" + ("lie" if code else "none"))
            log = tmp_path / f"{number}.log"
            done = CliRunner().invoke(
                main, ["--config", str(runs.lab.config_file), "-vv", "--log-file", str(log), *command.split()]
            )
            assert done.exit_code == code, done.output
            said += [done.stdout, done.stderr, log.read_text()]
    finally:
        over.set()
        watcher.join()
    traced = (tmp_path / "trace.jsonl").read_text()
    assert '"op":"ticket"' in traced.replace(" ", ""), "the trace shows that tickets crossed"
    repository = runs.lab.folder / "repository"
    kept = [file.read_bytes().decode("utf-8", "replace") for file in repository.rglob("*") if file.is_file()]
    assert len(kept) > 5
    assert len(tickets) >= 4
    assert len(secrets) >= 2 + len(tickets), "passwords, tickets and session cookies"
    assert all(len(secret) >= 8 for secret in secrets)
    shown = "\n".join([*said, traced, *kept])
    assert [secret[:4] for secret in secrets if secret in shown] == []


def test_a_stop_keeps_what_was_moved(start_runs: StartRuns) -> None:
    """Ctrl-C closes the disk and reads back: what counts then is not sent again."""
    runs = start_runs(32)
    runs.lab.set("prod.bandwidth_mib_s=12")
    process = runs.start()
    until(lambda: bool(runs.lab.status()["dr"]["locks"]), process)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert_clean(runs)
    runs.lab.set("prod.bandwidth_mib_s=0")
    report = runs.replicate()
    assert report["disks"][0]["resumed"]
    assert moved(report) < runs.written_on_target() - 4 * MIB
    assert_sealed(runs, report)


def killed_and_again(runs: Runs, kills: int, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    runs.replicate()
    began = time.monotonic()
    runs.write(0, 1)
    runs.replicate()
    usual = time.monotonic() - began
    for number in range(kills):
        runs.write(chance.randrange(100), chance.randrange(1, 120), seed=f"kill {number}")
        process = runs.start()
        time.sleep(chance.uniform(0.3, usual))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        report = runs.replicate()
        assert report["result"] == "success", report
        assert_sealed(runs, report)


def test_killed_at_any_moment_and_run_again(start_runs: StartRuns) -> None:
    runs = start_runs(16)
    runs.lab.set("bandwidth_mib_s=40")
    killed_and_again(runs, kills=1, seed=11)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(8))
def test_killed_forty_times(start_runs: StartRuns, part: int) -> None:
    """In parts of five, each on a lab of its own: other moments each time."""
    runs = start_runs(16)
    runs.set_in_job("retention = { last = 3 }")
    runs.lab.set("bandwidth_mib_s=40")
    killed_and_again(runs, kills=5, seed=time.time_ns() + part)
