"""Scripts around the source snapshot: their order, what a failure means, and that the guest is always thawed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.memory_site import MemoryVm
from tests.support.world import World, folder_of
from vrepl.app.scripts import JobScripts
from vrepl.config import LoadedConfig
from vrepl.config.load import parse
from vrepl.engine.guest_freeze import FROZEN
from vrepl.errors import UsageError, VsphereError
from vrepl.model import Consistency, PowerState
from vrepl.model.guests import OUTPUT_KEPT, GuestLogin, GuestPolicy, OnScriptFailure, ProgramEnd, Script
from vrepl.report.model import Result, VmReport
from vrepl.secrets import Secrets

POLICY = GuestPolicy(
    pre_freeze="/scripts/freeze.sh",
    post_thaw="/scripts/thaw.sh",
    host_pre_freeze=("hold",),
    host_post_thaw=("release",),
)


class Guest:
    """What runs in the guest: freeze.sh stops it, thaw.sh lets it go."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.frozen = False
        self.ends: dict[str, Callable[[], ProgramEnd]] = {}

    def run(self, vm: MemoryVm, login: GuestLogin, script: Script) -> ProgramEnd:
        assert login == GuestLogin("root", "guest-secret")
        if script.name == "freeze.sh":
            self.frozen = True
        end = self.ends.get(script.name, lambda: ProgramEnd(0, b"fine\n"))()
        if script.name == "thaw.sh" and end.status == 0:
            self.frozen = False
        return end


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "repository")
    made.source.add_vm("web-01", [1 << 20]).cbt_enabled = True  # so that its first snapshot is quiesced
    made.job = replace(made.job, guest=POLICY)
    return made


@pytest.fixture
def guest(world: World) -> Guest:
    made = Guest(world)
    world.source.guest_programs = made.run
    return made


def steps(world: World) -> list[str]:
    wanted = ("run_in_guest ", "command", "create_snapshot", "remove_snapshot")
    return [call.replace("run_in_guest ", "") for call in world.source.calls if call.startswith(wanted)]


FAIR = ["command hold", "freeze.sh", "create_snapshot", "thaw.sh", "command release", "remove_snapshot"]


def test_scripts_enclose_the_snapshot_and_nothing_longer(world: World, guest: Guest) -> None:
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert report.consistency is Consistency.QUIESCED
    assert steps(world) == FAIR
    assert [(one.moment, one.place, one.status, one.output, one.error) for one in report.scripts] == [
        ("pre_freeze", "control host", 0, "", None),
        ("pre_freeze", "guest", 0, "fine\n", None),
        ("post_thaw", "guest", 0, "fine\n", None),
        ("post_thaw", "control host", 0, "", None),
    ]
    assert VmReport.from_json(report.to_json()).scripts[1].output == "fine\n"
    assert not guest.frozen
    assert world.source.waiting_in_guests == {}


def test_a_guest_that_does_not_run_has_no_scripts(world: World, guest: Guest) -> None:
    next(iter(world.source.vms.values())).power = PowerState.OFF
    report = world.run_vm()
    assert (report.result, report.scripts) == (Result.SUCCESS, [])


def refuse() -> ProgramEnd:
    raise VsphereError("the guest's login was refused", fault="InvalidGuestLogin", hint="look at logins")


FAILURES = {
    "exits 3": (lambda: ProgramEnd(3, b"so\nno such volume\n"), "ended with status 3: no such volume"),
    "hangs": (lambda: ProgramEnd(None, b"wait"), "did not end within 60 s, and was ended"),
    "wrong login": (refuse, "login was refused (look at logins)"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("script", ["freeze.sh", "thaw.sh"])
def test_a_script_that_fails_fails_its_vm(world: World, guest: Guest, name: str, script: str) -> None:
    guest.ends[script], said = FAILURES[name]
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert said in report.error.message
    assert steps(world)[-1] in {"command release", "remove_snapshot"}
    assert "thaw.sh" in steps(world)
    assert "command release" in steps(world)
    assert steps(world).count("thaw.sh") == 1
    assert world.our_source_snapshots() == []
    assert guest.frozen == (script == "thaw.sh")
    assert folder_of(world).restore_points() == []


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("script", ["freeze.sh", "thaw.sh"])
def test_or_is_only_noted(world: World, guest: Guest, name: str, script: str) -> None:
    world.job = replace(world.job, guest=replace(POLICY, on_script_failure=OnScriptFailure.CONTINUE))
    guest.ends[script], said = FAILURES[name]
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert [note for note in report.notes if said in note]
    assert steps(world) == FAIR


def test_a_host_command_that_fails_keeps_the_guest_from_being_frozen(world: World, guest: Guest) -> None:
    world.scripts.command = lambda words: ProgramEnd(1 if words == ("hold",) else 0)
    assert world.run_vm().result is Result.FAILED
    assert steps(world) == ["command hold", "thaw.sh", "command release"]


def test_a_job_without_a_login_says_so(world: World, guest: Guest) -> None:
    world.scripts.missing_login = True
    report = world.run_vm()
    assert report.error is not None
    assert "no login for the guest of web-01" in report.error.message
    assert "command release" in steps(world)


def test_a_snapshot_that_fails_thaws(world: World, guest: Guest) -> None:
    def fail(method: str) -> None:
        if method == "create_snapshot":
            raise VsphereError("no room for a snapshot")

    world.source.before_call = fail
    report = world.run_vm()
    assert report.error is not None
    assert "no room for a snapshot" in report.error.message
    assert not guest.frozen
    assert steps(world).count("thaw.sh") == 1


@pytest.mark.parametrize("policy", OnScriptFailure)
def test_a_guest_is_never_frozen_past_its_limit(world: World, guest: Guest, policy: OnScriptFailure) -> None:
    world.job = replace(world.job, guest=replace(POLICY, frozen_at_most=0.05, on_script_failure=policy))
    released = threading.Event()

    def command(words: Sequence[str]) -> ProgramEnd:
        if words == ("release",):
            released.set()
        return ProgramEnd(0)

    world.scripts.command = command

    def slow(method: str) -> None:
        if method == "create_snapshot":
            assert released.wait(30), "thawed while the snapshot is still being made"
            assert not guest.frozen

    world.source.before_call = slow
    report = world.run_vm()
    assert steps(world).count("thaw.sh") == 1
    assert world.our_source_snapshots() == []
    if policy is OnScriptFailure.FAIL:
        assert report.error is not None
        assert "had to be thawed after" in report.error.message
    else:
        assert report.result is Result.SUCCESS
        assert [note for note in report.notes if "had to be thawed after" in note]


STEPS = ("command hold", "prod run_in_guest freeze.sh", "prod create_snapshot", "prod run_in_guest thaw.sh")
ENDS = ("command release", "prod forget_in_guest")
KILLS = [f"{when} {what}" for when in ("before", "after") for what in (*STEPS, *ENDS)]


@pytest.mark.parametrize("where", KILLS)
def test_what_a_dead_run_froze_the_next_one_thaws_first(world: World, guest: Guest, where: str) -> None:
    assert world.run_until(lambda point: point == where) is None
    intent = folder_of(world).intent()
    assert intent is not None
    assert FROZEN in intent.journal.notes
    if guest.frozen:
        assert list(world.source.waiting_in_guests.values()) == [("thaw.sh", 330.0)]
    world.source.calls.clear()
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert steps(world)[:2] == ["thaw.sh", "command release"]
    assert "post_thaw was run: a dead run may have left the guest frozen" in report.notes
    assert not guest.frozen
    assert world.source.waiting_in_guests == {}
    world.source.calls.clear()
    assert world.run_vm().result is Result.SUCCESS
    assert steps(world) == FAIR


def test_a_guest_that_cannot_thaw_itself_is_not_frozen(world: World, guest: Guest) -> None:
    def fail(method: str) -> None:
        if method == "run_in_guest_later":
            raise VsphereError("the guest's login was refused", fault="InvalidGuestLogin")

    world.source.before_call = fail
    report = world.run_vm()
    assert report.error is not None
    assert "which is not frozen: the guest's login was refused" in report.error.message
    assert "freeze.sh" not in steps(world)


def test_a_job_that_has_lost_its_scripts_says_what_it_cannot_thaw(world: World, guest: Guest) -> None:
    assert world.run_until(lambda point: point == "after prod run_in_guest freeze.sh") is None
    world.job = replace(world.job, guest=GuestPolicy())
    report = world.run_vm()
    assert report.result is Result.SUCCESS
    assert [note for note in report.notes if "may have left the guest frozen, and this job has no scripts" in note]


# -- the machine that vrepl runs on -----------------------------------------------------------------------------------

CONFIG = """
[sites.prod]
server = "prod.example.com"
user = "u"
password = { file = "prod" }
[repository]
path = "repository"
[jobs.web]
source = "prod"
target = "prod"
vms = ["web-01"]
target_datastore = "ds"
[jobs.web.guest]
pre_freeze = "freeze.sh"
host_pre_freeze = "hold --now 'the queue'"
script_timeout = "90s"
[jobs.web.guest.logins]
"web-*" = { user = "root", password = { file = "guest" } }
"*" = { user = "x", password = { file = "no" } }
"""


@pytest.fixture
def desk(tmp_path: Path) -> JobScripts:
    (tmp_path / "guest").touch(mode=0o600)
    (tmp_path / "guest").write_text("s3cret\n")
    return JobScripts(LoadedConfig(tmp_path / "vrepl.toml", parse(CONFIG, "vrepl.toml", tmp_path)), Secrets({}))


def test_the_configuration_reaches_the_engine(desk: JobScripts, tmp_path: Path) -> None:
    policy = parse(CONFIG, "vrepl.toml", tmp_path).jobs["web"].settings("web").guest
    assert policy.pre_freeze == str(tmp_path / "freeze.sh")
    assert policy.host_pre_freeze == ("hold", "--now", "the queue")
    assert (policy.script_timeout, policy.frozen_at_most) == (90.0, 300.0)
    assert desk.guest_login("web", "web-07") == GuestLogin("root", "s3cret")
    assert "s3cret" not in repr(desk.guest_login("web", "web-07"))
    with pytest.raises(UsageError, match="cannot be read"):
        desk.guest_login("web", "db-01")
    with pytest.raises(UsageError, match="cannot be read"):
        desk.read_script(str(tmp_path / "none.sh"))


def python(*words: str) -> list[str]:
    return [sys.executable, "-c", *words]


@pytest.mark.slow
def test_a_command_of_the_control_host(desk: JobScripts) -> None:
    code = "import os, sys; print(os.environ['VREPL_VM'], flush=True); print('x', file=sys.stderr); sys.exit(3)"
    assert desk.run_command(python(code), {"VREPL_VM": "web-01"}, within=30) == ProgramEnd(3, b"web-01\nx\n")
    end = desk.run_command(python("print('a' * 1000000 + 'z')"), {}, within=30)
    assert (end.status, len(end.output), end.output[-2:], end.cut) == (0, OUTPUT_KEPT, b"z\n", True)
    end = desk.run_command(["/bin/sh", "-c", "echo begun; sleep 100 & wait"], {}, within=0.5)
    assert end == ProgramEnd(None, b"begun\n")
    with pytest.raises(UsageError, match="cannot be run"):
        desk.run_command(["/no/such/command"], {}, within=1)
