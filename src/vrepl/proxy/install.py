"""Puts the vrepl that runs here onto a proxy, over ssh: its own folder, its own libraries, nothing of the system's.

What is sent is what runs here, to the byte, with the libraries that movers need. Where the proxy's Python is another
than this one, those that are compiled (blake3, zstandard) are fetched there by its own pip.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import secrets
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import vrepl
from vrepl.errors import MoverError
from vrepl.movers.build_id import build_id
from vrepl.proxy.machine import FarMachine
from vrepl.proxy.ssh import INSTALLED, SshMachine

OLDEST, NEWEST = (3, 11), (3, 14)
LIBRARIES = ("blake3", "zstandard")
KEPT = 3
"""Installations that stay, this one included: a run of another vrepl may be under way."""
INSTALL_SECONDS = 300.0
STALE_SECONDS = 4 * INSTALL_SECONDS
"""An installation that was broken off so long ago does not go on any more."""

FIND_PYTHON = """
for python in {candidates}; do
  command -v "$python" >/dev/null 2>&1 || continue
  "$python" - <<'END' && exit 0
import json, sys, sysconfig
if not {oldest} <= sys.version_info[:2]: sys.exit(1)
json.dump([sys.executable, sysconfig.get_platform(), list(sys.version_info[:2])], sys.stdout)
END
done
exit 96
"""
UNPACK = """
import os, sys, tarfile
part, python = sys.argv[1:]
os.mkdir(part, 0o700)
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
    archive.extractall(part)
os.symlink(python, os.path.join(part, "python"))
"""
FINISH = """
import fcntl, os, shutil, sys, time
part, build, kept = sys.argv[1], sys.argv[2], int(sys.argv[3])
fcntl.flock(os.open(".", os.O_RDONLY), fcntl.LOCK_EX)
if os.path.lexists(build):
    os.rename(build, part + ".before")
os.rename(part, build)
os.utime(build)
folders = [entry for entry in os.scandir(".") if entry.is_dir() and len(entry.name.partition(".")[0]) == 32]
whole = [entry.path for entry in folders if "." not in entry.name]
stale = [entry.path for entry in folders if "." in entry.name and time.time() - entry.stat().st_mtime > {stale}]
gone = [part + ".before", *stale, *sorted(whole, key=os.path.getmtime, reverse=True)[kept:]]
for old in gone:
    shutil.rmtree(old, ignore_errors=True)
"""
"""Two installations at a time do not meet, and a run that uses the one before finds its modules all along: what it has
not loaded yet is the same in the new one."""


@dataclass(frozen=True, slots=True)
class FarPython:
    """The Python that a proxy takes."""

    executable: str
    platform: str
    version: tuple[int, int]

    @property
    def takes_our_libraries(self) -> bool:
        """Whether what is compiled for this Python runs under that one."""
        return (self.platform, self.version) == (sysconfig.get_platform(), sys.version_info[:2])


def install(ssh: SshMachine, tell: Callable[[str], None] = lambda _line: None) -> dict[str, object]:
    """Idempotent; returns what `proxy.facts_program` then tells. Raises MoverError, ConnectionFailedError."""
    python = find_python(ssh)
    tell(f"{python.executable} (Python {python.version[0]}.{python.version[1]}, {python.platform})")
    archive = bundle(with_libraries=python.takes_our_libraries)
    tell(f"sending {len(archive) / (1 << 20):.1f} MiB to {ssh.destination}:~/{INSTALLED}/{build_id()}")
    part = f"{build_id()}.{secrets.token_hex(4)}"
    begin = f"umask 077; mkdir -p {INSTALLED} && cd {INSTALLED} && exec {quote(python.executable)} -c {quote(UNPACK)}"
    ssh.run(f"{begin} {part} {quote(python.executable)}", archive, seconds=INSTALL_SECONDS)
    if not python.takes_our_libraries:
        tell(f"fetching {', '.join(LIBRARIES)} there")
        _fetch_libraries(ssh, part)
    finish = quote(FINISH.format(stale=int(STALE_SECONDS)))
    ssh.run(f"cd {INSTALLED} && exec {part}/python -c {finish} {part} {build_id()} {KEPT}")
    return FarMachine(ssh).facts()


def find_python(ssh: SshMachine) -> FarPython:
    """Raises MoverError where there is none that suits."""
    names = [ssh.python] if ssh.python else ["python3", *(f"python3.{minor}" for minor in range(NEWEST[1], 10, -1))]
    script = FIND_PYTHON.format(candidates=" ".join(map(quote, names)), oldest=OLDEST)
    try:
        told = json.loads(ssh.run(script))
    except MoverError as error:
        raise MoverError(
            f"proxy {ssh.name} has no Python from {OLDEST[0]}.{OLDEST[1]} on ({error.message})",
            hint=f'install one, or say where it is: [proxies.{ssh.name}] python = "/path/to/python3"',
        ) from error
    return FarPython(told[0], told[1], (told[2][0], told[2][1]))


def bundle(*, with_libraries: bool) -> bytes:
    """A tar archive of folder `site`: vrepl as it runs here, and what movers need beside the standard library."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
        for path, name in _files(with_libraries=with_libraries):
            archive.add(path, f"site/{name}", recursive=False)
    return buffer.getvalue()


def _files(*, with_libraries: bool) -> Iterator[tuple[Path, str]]:
    package = Path(vrepl.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path, f"vrepl/{path.relative_to(package).as_posix()}"
    if not with_libraries:
        return
    for library in LIBRARIES:
        try:
            distribution = importlib.metadata.distribution(library)
        except importlib.metadata.PackageNotFoundError:
            continue  # zstandard is an extra
        for file in distribution.files or []:
            path = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
                yield path, file.as_posix()


def _fetch_libraries(ssh: SshMachine, part: str) -> None:
    folder = f"{INSTALLED}/{part}"
    pip = "./python -m pip install --quiet --disable-pip-version-check --only-binary :all: --target site"
    try:
        ssh.run(f"cd {folder} && exec {pip} {' '.join(LIBRARIES)}", seconds=INSTALL_SECONDS)
    except MoverError as error:
        raise MoverError(
            f"proxy {ssh.name} has another Python than this machine, and its pip does not fetch "
            f"{', '.join(LIBRARIES)}: {error.message}",
            hint="let it reach PyPI (or a mirror, in its pip.conf), or install there the Python that runs here "
            f"({sys.version_info[0]}.{sys.version_info[1]})",
        ) from error
