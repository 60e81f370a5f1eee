"""Everything that can go wrong, as one tree, with its exit code and whether trying again can help.

    VreplError                      message, hint, exit code, retryable
    ├── UsageError                  2   the call or the configuration is wrong
    │   └── ConfigError             2   every mistake of a configuration at once
    ├── NotFoundError              10   a name that nothing answers to
    ├── LockedError                11   another run holds the lock
    ├── AuthenticationError        12   the login was refused
    ├── PermissionDeniedError       1   a privilege is missing, by name
    ├── ConnectionFailedError       1   a site, host or port cannot be reached         (retryable)
    ├── CertificateError            1   TLS verification failed; never retried blindly
    ├── VsphereError                1   vSphere refused or failed an operation
    │   └── TransientVsphereError   1   … in a way that passes                         (retryable)
    ├── CbtError                    1   change tracking cannot be trusted or asked
    ├── DiskError                   1   VDDK refused or failed an operation on a disk
    │   ├── TransientDiskError      1   … in a way that passes                         (retryable)
    │   ├── TransportModeError      1   this transport mode failed; the next may do
    │   ├── NfcMemoryError          1   an ESXi host is out of NFC memory              (retryable)
    │   └── DiskLockedError         1   another client has the disk open               (retryable)
    ├── MoverError                  1   a data mover died or broke its protocol        (retryable)
    │   └── StreamLostError         1   the stream between two movers ended            (retryable)
    ├── LibraryError                1   VDDK cannot be found or loaded
    ├── NotReplicableError          1   the VM or a disk of it cannot be replicated
    ├── NotReadyError               3   the replica is in a state that forbids this
    ├── NoSpaceError                1   the target has no room
    ├── RepositoryError             1   the repository is damaged, read-only or newer
    ├── VerificationError           1   bytes differ from their digests
    └── InterruptedRunError       130   the operator asked to stop

`replicate` over several VMs exits with 3 when only some of them failed (see `exit_code_of_run`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_NOT_FOUND = 10
EXIT_LOCKED = 11
EXIT_AUTHENTICATION = 12
EXIT_INTERRUPTED = 130


class VreplError(Exception):
    """What happened (to which VM, disk and step), and what the operator can do about it.

    `vm`, `disk` and `step` may be filled in on the way up, by whoever knows them.
    """

    exit_code: ClassVar[int] = EXIT_FAILED
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        vm: str | None = None,
        disk: str | None = None,
        step: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.vm = vm
        self.disk = disk
        self.step = step

    def at(self, *, vm: str | None = None, disk: str | None = None, step: str | None = None) -> VreplError:
        """Fill in where it happened, keeping what is known already; returns itself, for `raise error.at(…)`."""
        self.vm = self.vm or vm
        self.disk = self.disk or disk
        self.step = self.step or step
        return self

    def __str__(self) -> str:
        place = ", ".join(
            part
            for part in (
                f"VM {self.vm}" if self.vm else "",
                self.disk or "",
                self.step or "",
            )
            if part
        )
        return f"{place}: {self.message}" if place else self.message


class UsageError(VreplError):
    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """Every mistake of one configuration, each with its key path."""

    def __init__(self, source: str, problems: Iterable[str], *, hint: str | None = None) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count} mistake{'s' if count != 1 else ''}{lines}", hint=hint)


class NotFoundError(VreplError):
    exit_code = EXIT_NOT_FOUND


class LockedError(VreplError):
    exit_code = EXIT_LOCKED


class AuthenticationError(VreplError):
    exit_code = EXIT_AUTHENTICATION


class PermissionDeniedError(VreplError):
    """A privilege is missing; `privilege` is its id, such as `VirtualMachine.State.CreateSnapshot`."""

    def __init__(self, message: str, *, privilege: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.privilege = privilege


class ConnectionFailedError(VreplError):
    retryable = True


class CertificateError(VreplError):
    pass


class VsphereError(VreplError):
    """`fault` is the name of vSphere's fault type, such as `InvalidState`."""

    def __init__(self, message: str, *, fault: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.fault = fault


class TransientVsphereError(VsphereError):
    retryable = True


class CbtError(VreplError):
    pass


class DiskError(VreplError):
    """`code` is the VixError's low 16 bits, `offset` the byte offset where it happened, where there is one."""

    def __init__(
        self, message: str, *, code: int | None = None, offset: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.offset = offset


class TransientDiskError(DiskError):
    retryable = True


class TransportModeError(DiskError):
    """The transport mode that was used failed; `mode` names it, `side` is `source` or `target` where that is known."""

    def __init__(
        self,
        message: str,
        *,
        mode: str,
        code: int | None = None,
        offset: int | None = None,
        hint: str | None = None,
        side: str | None = None,
    ) -> None:
        super().__init__(message, code=code, offset=offset, hint=hint)
        self.mode = mode
        self.side = side


class NfcMemoryError(DiskError):
    retryable = True


class DiskLockedError(DiskError):
    retryable = True


class MoverError(VreplError):
    retryable = True

    machine: str | None = None
    """The proxy on another machine whose mover it was, where that is known."""


class StreamLostError(MoverError):
    """The stream between two data movers ended; why, the one that ended it knows."""


class LibraryError(VreplError):
    pass


class NotReplicableError(VreplError):
    pass


class NotReadyError(VreplError):
    exit_code = EXIT_PARTIAL


class NoSpaceError(VreplError):
    pass


class RepositoryError(VreplError):
    pass


class VerificationError(VreplError):
    pass


class InterruptedRunError(VreplError):
    exit_code = EXIT_INTERRUPTED


RESUME_HINT = "run the job again: it goes on where it stopped"


def stopped_on_request() -> InterruptedRunError:
    """What whoever works or waits raises once the operator asked to stop."""
    return InterruptedRunError("stopped on request", hint=RESUME_HINT)


def exit_code_of_run(succeeded: int, failed: int, skipped: int) -> int:
    """The exit code of a run over several VMs: 0 all well, 3 some failed or were skipped, 1 nothing succeeded."""
    if failed == 0 and skipped == 0:
        return EXIT_OK
    return EXIT_PARTIAL if succeeded > 0 else EXIT_FAILED
