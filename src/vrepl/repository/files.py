"""Writing files so that a crash leaves the old content or the new one, never a mixture. Light: data movers use it.

Every OSError becomes a RepositoryError that names the path, with a hint where the cause is a usual one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vrepl.errors import RepositoryError

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
TEMPORARY_SUFFIX = ".new"
"""A file of this name was never finished; recovery removes it."""

DAMAGED_SUFFIX = ".damaged"
"""What a document that cannot be read any more is renamed to by a rebuild, for a person to look at."""

_HINTS = {
    errno.ENOSPC: "free some space there (old run reports under runs/ may go) and run again",
    errno.EDQUOT: "raise the quota or free some space there, and run again",
    errno.EFBIG: "a file size limit is in force: raise it (ulimit -f) and run again",
    errno.EROFS: "the file system is mounted read-only: remount it read-write",
    errno.EACCES: "the repository belongs to the user that made it: run vrepl as that user",
    errno.EPERM: "the repository belongs to the user that made it: run vrepl as that user",
    errno.EIO: "the medium is failing: move the repository, or run `vrepl repository rebuild` on a new one",
    errno.ENOLCK: "the file system has no locks: keep the repository on a local one",
}


def failure(error: OSError, path: Path | str, doing: str) -> RepositoryError:
    """The RepositoryError for an OSError met while `doing` something with `path`."""
    reason = error.strerror or type(error).__name__
    return RepositoryError(f"cannot {doing} {path}: {reason}", hint=_HINTS.get(error.errno or 0))


@contextmanager
def naming(path: Path | str, doing: str) -> Iterator[None]:
    """Turn an OSError of the block into a RepositoryError that names `path`."""
    try:
        yield
    except OSError as error:
        raise failure(error, path, doing) from error


def make_directory(path: Path) -> None:
    """Make `path` and its parents with mode 0700, durably; one that exists is fine."""
    with naming(path, "create"):
        missing = []
        at = path
        while not at.is_dir():
            missing.append(at)
            at = at.parent
        for directory in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(directory, DIRECTORY_MODE)
            sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with naming(path, "sync"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[int]:
    """A descriptor (read and write) of a new file that takes `path`'s place, durably, if the block ends well.

    If it does not, `path` is untouched and the new file is removed. `durable=False` is for hints: when the machine
    crashes, what is there may be the old file, the new one, or one with a wrong checksum.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with naming(path, "write"):
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        try:
            try:
                yield descriptor
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        if durable:
            sync_directory(path.parent)


def write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """pwrite until everything is written; a full disk shows as OSError, never as a short file that passes for whole."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        if written <= 0:
            raise OSError(errno.EIO, "nothing was written")
        view = view[written:]
        offset += written


def replace_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Give `path` this content, durably unless told otherwise."""
    with replacing(path, durable=durable) as descriptor:
        write_all(descriptor, data, 0)


def create_bytes(path: Path, data: bytes) -> bool:
    """Like `replace_bytes`, but never over an existing file: False, and nothing is changed, if there is one."""
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}")
    replace_bytes(temporary, data)
    with naming(path, "write"):
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
    sync_directory(path.parent)
    return True


def remove_file(path: Path) -> None:
    """Remove durably; a file that is gone already is fine."""
    with naming(path, "remove"), suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(path.parent)


def rename_file(path: Path, to: Path) -> None:
    """Rename durably within its directory, over what is there."""
    with naming(path, "rename"):
        os.replace(path, to)
        sync_directory(path.parent)
