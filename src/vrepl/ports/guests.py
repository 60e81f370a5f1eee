"""What scripts around a snapshot take: programs in a guest, and the machine that vrepl runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vrepl.errors import UsageError
from vrepl.model.guests import GuestLogin, GuestProcess, ProgramEnd, Script


class GuestPrograms(Protocol):
    """Programs run in guests, through VMware Tools."""

    def run_in_guest(self, vm_ref: str, login: GuestLogin, script: Script, *, within: float) -> ProgramEnd:
        """Upload a script, run it to its end or for `within` seconds, and remove it; one that runs longer is ended.

        Raises VsphereError (fault InvalidGuestLogin, GuestOperationsUnavailable, ...) and PermissionDeniedError.
        """
        ...

    def run_in_guest_later(self, vm_ref: str, login: GuestLogin, script: Script, *, seconds: float) -> GuestProcess:
        """Upload a script that the guest runs by itself after so many seconds, whatever becomes of whoever asked.

        Nothing is left in the guest when it raises.
        """
        ...

    def forget_in_guest(self, vm_ref: str, login: GuestLogin, process: GuestProcess) -> None:
        """What was to run later does not, and its files are removed; one that is gone already is fine."""
        ...


class ScriptHost(Protocol):
    """The machine that vrepl runs on, as far as scripts need it."""

    def read_script(self, path: str) -> Script:
        """Raises UsageError where it cannot be read."""
        ...

    def guest_login(self, job: str, vm: str) -> GuestLogin:
        """Of the VM of this name. Raises UsageError where the job has none for it, or its password cannot be had."""
        ...

    def run_command(self, words: Sequence[str], environment: Mapping[str, str], *, within: float) -> ProgramEnd:
        """Run a command without a shell, `environment` added to its own; one that runs longer is ended.

        Raises UsageError where it cannot be started.
        """
        ...


class NoScripts:
    """A machine without scripts: for commands that run none."""

    def read_script(self, path: str) -> Script:
        raise UsageError(f"the script {path} cannot be read here")

    def guest_login(self, job: str, vm: str) -> GuestLogin:
        raise UsageError(f"there is no login for the guest of {vm} in job {job} here")

    def run_command(self, words: Sequence[str], environment: Mapping[str, str], *, within: float) -> ProgramEnd:
        del environment, within
        raise UsageError(f"the command {words[0]} cannot be run here")
