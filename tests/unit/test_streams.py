"""Ends of streams: closed, full, or left by their reader, they change neither what is done nor the exit code."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import stat
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

VREPL = f"{sys.executable} -c 'from vrepl.cli import main; main()'"
CONFIG = """
[sites.prod]
server = "127.0.0.1"
user = "u"
password = { file = "password" }
[repository]
path = "repository"
[jobs.demo]
source = "prod"
target = "prod"
vms = ["web-01"]
target_datastore = "ds"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vrepl.toml").write_text(CONFIG)
    return tmp_path


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """`line` with `vrepl` as a word; the status is vrepl's own, not that of the last command of a pipe."""
    script = f"set -o pipefail; umask 000; {line.replace('vrepl', VREPL, 1)}"
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("end", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| head -1"])
def test_a_stream_that_ends_changes_no_exit_code(folder: Path, end: str) -> None:
    done = shell(folder, f"vrepl config show {end}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr == (
        "warning: what was to be written to stdout is lost: No space left on device\n" * (end == ">/dev/full")
    )


@pytest.mark.parametrize("end", [">&-", "2>&-", ">/dev/full", "2>/dev/full"])
def test_an_error_keeps_its_exit_code(folder: Path, end: str) -> None:
    assert shell(folder, f"vrepl vms nowhere --json {end}").returncode == 10


def test_no_file_gets_the_number_of_a_closed_stream(folder: Path) -> None:
    """What is meant for stderr would be written into the repository."""
    done = shell(folder, "vrepl -vv status >&- 2>&-")
    assert done.returncode in {0, 3}
    record = json.loads((folder / "repository" / "repository.json").read_text())
    assert record["format"] == 1 or record["format"] == 2


LOG_TWICE = """
import logging
from pathlib import Path
from vrepl.cli.logs import set_up_logging
from vrepl.cli.state import State
set_up_logging(State(log_file=Path(%r), log_format=%r, quiet=True))
for number in range(25):
    logging.getLogger("vrepl.x").warning("a\\nb")
"""


def test_a_log_on_a_full_disk_is_told_once(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOG_TWICE % ("/dev/full", "text")], capture_output=True, text=True, check=True
    )
    assert done.stderr == "warning: the log file /dev/full cannot be written any longer: No space left on device\n"


@pytest.mark.parametrize("umask", ["000", "022", "277", "777"])
def test_a_log_is_its_owners_alone_whatever_the_umask(folder: Path, umask: str) -> None:
    shell(folder, f"umask {umask}; vrepl --log-file log config show")
    assert stat.S_IMODE(os.stat(folder / "log").st_mode) == 0o600


@pytest.mark.parametrize("umask", ["000", "777"])
def test_the_repository_is_its_owners_alone_whatever_the_umask(folder: Path, umask: str) -> None:
    assert shell(folder, f"umask {umask}; vrepl history").returncode == 0
    for path in (folder / "repository").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((folder / "repository").stat().st_mode) == 0o700


def test_a_log_that_is_there_keeps_its_mode(folder: Path) -> None:
    (folder / "log").touch()
    (folder / "log").chmod(0o640)
    shell(folder, "vrepl --log-file log config show")
    assert stat.S_IMODE(os.stat(folder / "log").st_mode) == 0o640


def test_journald_gets_priorities(folder: Path) -> None:
    """systemd names the stream by device and inode; the word before the message is a level that it reads."""
    code = (
        "import os, sys\n"
        "out = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{out.st_dev}:{out.st_ino}'\n"
        "from vrepl.cli.logs import set_up_logging; from vrepl.cli.state import State\n"
        "import logging; set_up_logging(State())\n"
        "logging.getLogger('vrepl.x').warning('one\\nline')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "<4>WARNING: one\\nline\n"


def test_json_log_lines_have_times_with_an_offset(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", LOG_TWICE % ("log", "json")], cwd=folder, check=True, capture_output=True)
    told = json.loads((folder / "log").read_text().splitlines()[-1])
    assert (told["level"], told["logger"], told["message"]) == ("warning", "vrepl.x", "a\nb")
    assert told["time"][-6] in "+-"


@pytest.mark.parametrize("kilobytes", [55000, 60000, 70000, 90000])
def test_too_little_memory_is_said_in_words(folder: Path, kilobytes: int) -> None:
    (folder / "password").write_text("x")
    (folder / "password").chmod(0o600)
    done = shell(folder, f"ulimit -v {kilobytes}; vrepl vms prod")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "too little memory" in done.stderr or "connection refused" in done.stderr


def on_a_terminal(folder: Path, arguments: str, **environment: str) -> str:
    """What a terminal of 80 columns gets to see, escapes and all."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "TERM", "COLUMNS"}}
    command = [sys.executable, "-m", "vrepl", *arguments.split()]
    process = subprocess.Popen(
        command, cwd=folder, stdout=theirs, stderr=theirs, env={**kept, "TERM": "xterm", **environment}
    )
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # EIO: the other end is closed
        while piece := os.read(ours, 65536):
            seen += piece
    process.wait()
    os.close(ours)
    return seen.decode()


def test_colours_are_for_terminals_that_want_them(folder: Path) -> None:
    (folder / "vrepl.toml").write_text(CONFIG.replace('vms = ["web-01"]', 'vms = ["web-01"]\nrpo = "1m"'))
    assert "\x1b[31m" in on_a_terminal(folder, "status")
    assert "\x1b[3" not in on_a_terminal(folder, "status", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(folder, "status", TERM="dumb")
    assert "\x1b" not in shell(folder, "vrepl status").stdout
