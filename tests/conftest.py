"""What tests share: the lab, built on first use.

`VREPL_NO_LAB=1` skips whatever needs the lab; `VREPL_REQUIRE_LAB=1` (set in CI) makes a lab that cannot be built or
started a failure instead of a skip.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.small_lab import small_spec

if TYPE_CHECKING:
    from vrepl_lab.lab import Lab
    from vrepl_lab.spec import LabSpec

STATE_VARIABLE = "XDG_STATE_HOME"
LAB_FIXTURES = {"lab", "start_lab", "start_shared_lab"}
MIB = 1024 * 1024
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
"""netdevice(7)"""


def pytest_configure() -> None:
    # A run in the background (`make test &`, some CI) is born with Ctrl-C ignored, and so would be every child whose
    # interruption a test is about.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where CI is set, pytest explains failed comparisons without limit: over a disk's bytes that takes it hours.
    os.environ.pop("CI", None)
    os.environ.pop("BUILD_NUMBER", None)
    bring_up_loopback()


def bring_up_loopback() -> None:
    """Where the network is cut off by an empty namespace, even 127.0.0.1 is down: bring it up, if we may."""
    name = b"lo".ljust(16, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, suppress(OSError):
        answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, name + bytes(24))
        (flags,) = struct.unpack_from("<H", answer, 16)
        if not flags & IFF_UP:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, name + struct.pack("<H22x", flags | IFF_UP))


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


def start_or_skip(folder: Path, spec: LabSpec) -> Lab:
    if os.environ.get("VREPL_NO_LAB") == "1":
        pytest.skip("VREPL_NO_LAB=1")
    from vrepl_lab.errors import LabError
    from vrepl_lab.lab import Lab

    try:
        return Lab.start(folder, spec, say=lambda line: None)
    except LabError as error:
        if os.environ.get("VREPL_REQUIRE_LAB") == "1":
            raise
        pytest.skip(f"no lab: {error}")


@pytest.fixture(scope="session")
def lab_folders() -> Iterator[Callable[[], Path]]:
    """Makes folders for labs of any scope, removed at the end."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="vrepl-lab-")))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def start_shared_lab(lab_folders: Callable[[], Path]) -> Iterator[Callable[[LabSpec], Lab]]:
    """Starts labs that live as long as the session, for fixtures of a module or session."""
    started: list[Lab] = []

    def start(spec: LabSpec) -> Lab:
        started.append(start_or_skip(lab_folders(), spec))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture(scope="session")
def lab(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    """One small lab for all tests of a worker: leave it as you found it, or take `start_lab`."""
    return start_shared_lab(small_spec())


@pytest.fixture
def start_lab(lab_folders: Callable[[], Path]) -> Iterator[Callable[[LabSpec], Lab]]:
    """Starts labs of a test's own, and stops them."""
    started: list[Lab] = []

    def start(spec: LabSpec) -> Lab:
        started.append(start_or_skip(lab_folders(), spec))
        return started[-1]

    yield start
    for running in started:
        running.stop()
