"""Scripts around the source snapshot: in the guest and on the control host, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

OUTPUT_KEPT = 16 * 1024
"""Bytes of a program's output that are kept: the last ones, where errors stand."""


class ScriptMoment(StrEnum):
    PRE_FREEZE = "pre_freeze"
    POST_THAW = "post_thaw"


class ScriptPlace(StrEnum):
    GUEST = "guest"
    CONTROL_HOST = "control host"


class OnScriptFailure(StrEnum):
    """What a script that fails means for its VM."""

    FAIL = "fail"
    CONTINUE = "continue"
    """The run goes on, and a note says so."""


@dataclass(frozen=True, slots=True)
class GuestPolicy:
    """A job's scripts; times in seconds. Scripts of the guest are files of the control host, which are uploaded."""

    pre_freeze: str | None = None
    post_thaw: str | None = None
    host_pre_freeze: tuple[str, ...] = ()
    """A command and its arguments."""
    host_post_thaw: tuple[str, ...] = ()
    script_timeout: float = 60.0
    """For each script."""
    frozen_at_most: float = 300.0
    """From the start of the first pre_freeze to the start of post_thaw."""
    on_script_failure: OnScriptFailure = OnScriptFailure.FAIL
    quiesce_tries: int = 1
    """Quiesced snapshots that are tried before a guest counts as one that cannot be quiesced."""
    quiesce_timeout: float = 900.0
    """For each of them."""

    @property
    def has_scripts(self) -> bool:
        return bool(self.pre_freeze or self.post_thaw or self.host_pre_freeze or self.host_post_thaw)

    def in_guest(self, moment: ScriptMoment) -> str | None:
        return self.pre_freeze if moment is ScriptMoment.PRE_FREEZE else self.post_thaw

    def on_host(self, moment: ScriptMoment) -> tuple[str, ...]:
        return self.host_pre_freeze if moment is ScriptMoment.PRE_FREEZE else self.host_post_thaw


@dataclass(frozen=True, slots=True)
class GuestLogin:
    """A user of a guest's own system."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Script:
    """A file that is run. Its name's ending tells by what: `.cmd`, `.bat` and `.ps1` by Windows, else by itself."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class GuestProcess:
    """A program that waits in a guest, in a temporary folder of its own."""

    pid: int
    folder: str


@dataclass(frozen=True, slots=True)
class ProgramEnd:
    """How a program ended. `status`: its exit code, None where it was ended because its time had passed."""

    status: int | None
    output: bytes = b""
    """What it wrote to standard output and error: the last OUTPUT_KEPT bytes at the most."""
    cut: bool = False
    """It wrote more than that."""
