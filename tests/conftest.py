"""What tests share: the lab, built on first use.

`VREPL_NO_LAB=1` skips whatever needs the lab; `VREPL_REQUIRE_LAB=1` (set in CI) makes a lab that cannot be built or
started a failure instead of a skip.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.support.small_lab import small_spec, start_or_skip

if TYPE_CHECKING:
    from vrepl_lab.lab import Lab
    from vrepl_lab.spec import LabSpec

STATE_VARIABLE = "XDG_STATE_HOME"
LAB_FIXTURES = {"lab", "start_lab", "start_shared_lab"}
MIB = 1024 * 1024
GIB = 1024 * MIB
MEMORY_FOLDER = "/dev/shm"
MEMORY_NEEDED = 6 * GIB
"""Available memory from which tests keep their files in it: a whole run holds about 1 GiB."""
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
"""netdevice(7)"""


hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.register_profile("fast", deadline=None, max_examples=20)
"""`make fast`: where a test does not say how many examples it needs, a fifth of them."""
hypothesis.settings.load_profile("unhurried")  # a busy machine is no mistake


def pytest_configure() -> None:
    # A run in the background (`make test &`, some CI) is born with Ctrl-C ignored, and so would be every child whose
    # interruption a test is about.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where CI is set, pytest explains failed comparisons without limit: over a disk's bytes that takes it hours.
    os.environ.pop("CI", None)
    os.environ.pop("BUILD_NUMBER", None)
    # Programs are started thousands of times here; without their compiled form each takes half as long again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    keep_files_in_memory()
    bring_up_loopback()


def keep_files_in_memory() -> None:
    """Tests write and sync ten thousands of small files: where there is room in memory, and unless `TMPDIR` says
    another place, they go there. What tests prove about dying is about processes, not about losing power."""
    if "TMPDIR" in os.environ:
        return
    with suppress(OSError, ValueError, StopIteration):
        room = os.statvfs(MEMORY_FOLDER)
        line = next(one for one in Path("/proc/meminfo").read_text().splitlines() if one.startswith("MemAvailable:"))
        if min(room.f_bavail * room.f_frsize, int(line.split()[1]) * 1024) >= MEMORY_NEEDED:
            os.environ["TMPDIR"] = MEMORY_FOLDER
            tempfile.tempdir = None


def bring_up_loopback() -> None:
    """Where the network is cut off by an empty namespace, even 127.0.0.1 is down: bring it up, if we may."""
    name = b"lo".ljust(16, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, suppress(OSError):
        answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, name + bytes(24))
        (flags,) = struct.unpack_from("<H", answer, 16)
        if not flags & IFF_UP:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, name + struct.pack("<H22x", flags | IFF_UP))


def pytest_collection_finish() -> None:
    """What was collected stays to the end: spare the garbage collector going through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for a lab, directly or through another fixture, carries the marker."""
    for item in items:
        if LAB_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What vrepl keeps in its user's home goes elsewhere; a test may choose another place."""
    before = os.environ.get(STATE_VARIABLE)
    os.environ[STATE_VARIABLE] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ[STATE_VARIABLE]
    else:
        os.environ[STATE_VARIABLE] = before


@contextmanager
def removed_folders(factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Makes folders for labs, and removes them in the end: pytest would keep them, and labs are large."""
    with ExitStack() as at_end:

        def make() -> Path:
            folder = factory.mktemp("lab")
            at_end.callback(shutil.rmtree, folder, ignore_errors=True)
            return folder

        yield make


@contextmanager
def stopped_labs(make_folder: Callable[[], Path]) -> Iterator[Callable[[LabSpec], Lab]]:
    """Starts labs, and stops them in the end."""
    with ExitStack() as at_end:

        def start(spec: LabSpec) -> Lab:
            lab = start_or_skip(make_folder(), spec)
            at_end.callback(lab.stop)
            return lab

        yield start


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One small lab for all tests of a worker: leave it as you found it, or take `start_lab`."""
    with removed_folders(tmp_path_factory) as make_folder, stopped_labs(make_folder) as start:
        yield start(small_spec())


@pytest.fixture(scope="module")
def start_shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[LabSpec], Lab]]:
    """Starts labs that live as long as the module's tests, for its fixtures."""
    with removed_folders(tmp_path_factory) as make_folder, stopped_labs(make_folder) as start:
        yield start


@pytest.fixture
def lab_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    with removed_folders(tmp_path_factory) as make_folder:
        yield make_folder


@pytest.fixture
def start_lab(lab_folders: Callable[[], Path]) -> Iterator[Callable[[LabSpec], Lab]]:
    """Starts labs of a test's own, and stops them."""
    with stopped_labs(lab_folders) as start:
        yield start
