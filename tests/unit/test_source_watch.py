"""Whether a source still runs: a site that is lost keeps nobody waiting twice, one that lives is asked side by side."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vrepl.app import failover
from vrepl.app.failover import SourceWatch
from vrepl.app.sites import Sites
from vrepl.config import load
from vrepl.engine.events import SilentEvents
from vrepl.model import PowerState
from vrepl.model.failover import FailoverRecord

RECORD = FailoverRecord("repository", "prod", "uuid", "web-01", "replica")
CONFIG = """
[sites.prod]
server = "127.0.0.1"
port = {port}
user = "vrepl"
password = {{ file = "{password}" }}
thumbprint_sha256 = "{thumbprint}"

[sites.dr]
server = "127.0.0.1"
user = "vrepl"
password = {{ file = "{password}" }}

[repository]
path = "{folder}/repository"

[jobs.demo]
source = "prod"
target = "dr"
vms = ["web-01"]
target_datastore = "dr-ds"
"""


class Notes(SilentEvents):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, vm: str, message: str) -> None:
        self.told.append(message)


class Home:
    """A site that answers once all who ask at a time have come."""

    def __init__(self, together: int) -> None:
        self.barrier = threading.Barrier(together, timeout=20)
        self.first = True

    def find_vm_by_instance_uuid(self, instance_uuid: str) -> Any:
        if not self.first:
            self.barrier.wait()
        self.first = False

        class Vm:
            power = PowerState.ON

        return Vm()


@contextmanager
def silent_server() -> Iterator[int]:
    """It takes connections and never says a word, as a site does whose routers swallow everything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def configured(folder: Path, port: int) -> Any:
    password = folder / "password"
    password.write_text("secret")
    password.chmod(0o600)
    file = folder / "vrepl.toml"
    file.write_text(CONFIG.format(port=port, password=password, thumbprint=":".join(["AB"] * 32), folder=folder))
    file.chmod(0o600)
    return load(file)


def test_a_site_that_says_nothing_is_given_up_soon_and_not_asked_again(
    tmp_path: Path,
) -> None:
    assert failover.SOURCE_ANSWERS_WITHIN <= 10
    notes = Notes()
    with silent_server() as port, Sites(configured(tmp_path, port), answers_within=0.3) as sites:
        watch = SourceWatch(configured(tmp_path, port), sites, notes)
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(watch, [RECORD] * 8))
        assert answers == [None] * 8
        assert time.monotonic() - began < 20, "eight VMs wait as long as one: the site is asked twice in all"
    [told] = notes.told
    assert told.startswith("whether VMs still run at site prod is not known: ")


def test_once_a_site_has_answered_it_is_asked_about_many_vms_at_a_time(tmp_path: Path) -> None:
    home = Home(together=4)
    watch = SourceWatch(configured(tmp_path, 1), lambda _: home, Notes())  # type: ignore[arg-type]
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(watch, [RECORD] * 5)) == [True] * 5
