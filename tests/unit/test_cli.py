"""Promises of the command line that need no site: help, exit codes, words on stderr, JSON on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vrepl.cli import COMMANDS, main
from vrepl.model import ReplicaRecord
from vrepl.report.model import RunReport
from vrepl.repository.store import Repository, replica_id

CONFIG = """
[sites.prod]
server = "127.0.0.1"
port = 1
user = "u"
password = { file = "password" }
[sites.dr]
server = "127.0.0.1"
port = 1
user = "u"
password = { file = "password" }
[repository]
path = "repository"
[jobs.demo]
source = "prod"
target = "dr"
vms = ["web-01"]
target_datastore = "dr-01"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VREPL_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / "vrepl.toml").write_text(CONFIG)
    (tmp_path / "password").write_text("hunter2")
    (tmp_path / "password").chmod(0o600)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from every_command(inner, (*path, name))


@pytest.mark.parametrize("path", list(every_command(main)), ids=" ".join)
def test_every_help_has_an_example(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "Example:\n" in result.stdout
    assert f"  vrepl {' '.join(path[:1])}".rstrip() in result.stdout.split("Example:")[1]


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, vrepl.cli\n"
        "heavy = {'pyVmomi', 'pyVim', 'distributed', 'dask', 'rich', 'pydantic', 'keyring', 'cryptography'}\n"
        "heavy |= {'asyncio', 'ssl', '_ssl', 'hashlib', '_hashlib', 'tenacity', 'blake3', 'zstandard'}\n"
        "rooms = {'app', 'checks', 'config', 'engine', 'model', 'movers', 'planner', 'proxy', 'report', 'repository'}\n"
        "heavy |= {f'vrepl.{room}' for room in rooms | {'stream', 'transport', 'vddk', 'vsphere'}}\n"
        "print(sorted(name for name in sys.modules if name in heavy or name.startswith('vrepl_lab')))\n"
        "print('VixDiskLib' in open('/proc/self/maps').read())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


@pytest.mark.parametrize("path", [(), ("config",), ("repository",)])
def test_a_group_alone_shows_its_help_and_is_a_usage_error(path: tuple[str, ...]) -> None:
    result = run(*path)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


def test_the_list_of_commands_cuts_no_sentence() -> None:
    commands = run("--help").stdout.split("Commands:")[1].split("Example:")[0]
    assert "..." not in commands


def test_every_command_of_the_table_exists() -> None:
    context = click.Context(main)
    assert all(main.get_command(context, name) is not None for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["replicate", "dmo"], 10, 'did you mean "demo"'),
        (["plan", "demo", "--vm", "web-1"], 10, 'did you mean "web-01"'),
        (["vms", "prd"], 10, 'did you mean "prod"'),
        (["restore-points", "web-01"], 10, "no replica of web-01"),
        (["report"], 10, "no run has been made yet"),
        (["report", "nope"], 10, "there is no run nope"),
        (["--config", "absent.toml", "status"], 2, "no configuration file absent.toml"),
        (["replicate", "--lock-wait", "soon"], 2, "is no duration"),
        (["replicate", "--frobnicate"], 2, "No such option"),
        (["frobnicate"], 2, "there is no command frobnicate"),
        (["vms"], 2, "Missing argument 'SITE'"),
        (["vms", "prod"], 1, "127.0.0.1"),
    ],
)
def test_exit_codes_and_words(folder: Path, arguments: list[str], code: int, words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "hint: " in result.stderr
    assert result.stdout == ""


def test_an_error_is_json_where_results_are(folder: Path) -> None:
    result = run("replicate", "dmo", "--json")
    told = json.loads(result.stdout)
    assert told["version"] == 1
    assert set(told["error"]) == {"message", "hint", "vm", "disk", "step", "exit_code"}
    assert told["error"]["exit_code"] == result.exit_code == 10
    assert result.stderr.startswith("error: ")


def test_a_usage_error_is_json_too(folder: Path) -> None:
    told = json.loads(run("replicate", "--json", "--frobnicate").stdout)
    assert told["error"]["exit_code"] == 2


def test_all_mistakes_of_a_configuration_are_told(folder: Path) -> None:
    (folder / "vrepl.toml").write_text(CONFIG.replace("port = 1\n", "port = 0\n").replace('"prod"\n', '"prd"\n'))
    result = run("config", "validate", "--json")
    problems = json.loads(result.stdout)["error"]["problems"]
    assert result.exit_code == 2
    assert [problem.split(":")[0] for problem in problems] == ["sites.prod.port", "sites.dr.port", "jobs.demo.source"]
    assert all(problem in result.stderr for problem in problems)


def test_a_secret_file_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "password").chmod(0o644)
    result = run("vms", "prod")
    assert result.exit_code == 2
    assert f"chmod 600 {folder / 'password'}" in result.stderr


def test_what_init_writes_is_valid_and_not_overwritten(folder: Path) -> None:
    assert run("config", "init", "new.toml").exit_code == 0
    assert run("--config", "new.toml", "config", "validate").exit_code == 0
    again = run("config", "init", "new.toml")
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run("config", "init", "new.toml", "--force").exit_code == 0


def test_show_gives_effective_values_without_secrets(folder: Path) -> None:
    shown = run("config", "show")
    assert shown.exit_code == 0
    assert "nfc_port = 902" in shown.stdout
    assert "hunter2" not in shown.stdout
    (folder / "effective.toml").write_text(shown.stdout)
    assert run("--config", "effective.toml", "config", "validate").exit_code == 0, "what is shown can be used"
    values = json.loads(run("config", "show", "--json").stdout)["config"]
    assert values["sites"]["prod"]["password"] == {"file": str(folder / "password")}


def test_the_words_of_a_password_command_are_masked(folder: Path) -> None:
    (folder / "vrepl.toml").write_text(
        CONFIG.replace('{ file = "password" }', '{ command = ["vault", "read", "token=hunter2"] }')
    )
    assert "hunter2" not in run("config", "show").stdout


def test_lists_of_an_empty_repository(folder: Path) -> None:
    assert json.loads(run("replicas", "--json").stdout) == {"version": 1, "replicas": [], "damaged": []}
    assert json.loads(run("history", "--json").stdout) == {"version": 1, "runs": [], "damaged": []}
    status = json.loads(run("status", "--json").stdout)
    assert status["jobs"] == [{"name": "demo", "vms": ["web-01"], "running": False, "owner": None}]
    assert run("repository", "check").exit_code == 0


@pytest.mark.parametrize("damage", ["bit", "no report", "nothing"])
def test_a_damaged_run_disables_nothing(folder: Path, damage: str) -> None:
    store = Repository.open(folder / "repository")
    for number in (1, 2):
        store.save_run(f"run-{number}", RunReport(job="demo", id=f"run-{number}").to_json())
        os.utime(store.path / "runs" / f"run-{number}.json", (number, number))
    path = store.path / "runs" / "run-2.json"
    text = path.read_text()
    broken = {"bit": text.replace("demo", "demp"), "nothing": "", "no report": '{"format": 1, "report": {"run": 7}}'}
    path.write_text(broken[damage])
    told = json.loads(run("history", "--json").stdout)
    assert [one["id"] for one in told["runs"]] == ["run-1"]
    assert len(told["damaged"]) == 1
    assert str(path) in told["damaged"][0]
    status = run("status", "--json")
    assert json.loads(status.stdout)["vms"][0]["name"] == "web-01"
    assert str(path) in status.stderr
    assert json.loads(run("report", "--json").stdout)["run"]["id"] == "run-1"
    named = run("report", "run-2")
    assert named.exit_code == 1
    assert f"{path} is damaged" in named.stderr


def test_a_replica_that_is_not_made_yet_is_called_by_its_source(folder: Path) -> None:
    """What a first run leaves that was refused before it made anything."""
    uuid = "5032a0d4-0000-0000-0000-000000000001"
    record = ReplicaRecord(
        id=replica_id("prod", uuid),
        source_site="prod",
        source_instance_uuid=uuid,
        source_name="web-01",
        target_site="dr",
        target_instance_uuid="",
        target_name="",
        job="demo",
    )
    Repository.open(folder / "repository", create=True).create_replica(record)
    assert "\nweb-01  demo  no replica " in run("status").stdout
    assert "(not made yet)" in run("replicas").stdout
    assert "no restore points of web-01 yet" in run("restore-points", "web-01").stdout


def test_a_mistyped_command_or_option_is_told_once_with_what_is_near(folder: Path) -> None:
    done = run("replicat")
    assert (done.exit_code, done.stderr) == (2, "error: there is no command replicat\nhint: did you mean replicate?\n")
    done = run("replicate", "--lok-wait", "3")
    assert done.exit_code == 2
    assert done.stderr.lower().count("did you mean") == 1


@pytest.mark.parametrize("extra", [[], ["--json"]])
@pytest.mark.slow
def test_a_terminal_without_utf_8_gets_what_it_can_show(folder: Path, extra: list[str]) -> None:
    """A VM's name is whatever its admin called it."""
    text = CONFIG.replace('"web-01"', '"größe → 1"')
    (folder / "vrepl.toml").write_text(text, encoding="utf-8")
    code = "from vrepl.cli import main; main()"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code, "status", *extra], capture_output=True, env=environment, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    if extra:
        assert json.loads(done.stdout)["jobs"][0]["vms"] == ["größe → 1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "other.toml", "status", "--json"],
        ["status", "--json", "--config", "other.toml"],
        ["--json", "status", "--config", "other.toml"],
    ],
)
def test_options_of_vrepl_stand_before_a_command_or_behind_it(folder: Path, arguments: list[str]) -> None:
    (folder / "vrepl.toml").rename(folder / "other.toml")
    assert json.loads(run(*arguments).stdout)["version"] == 1
    assert run("config", "validate", "--log-file", "log", "-v", "--config", "other.toml").exit_code == 0
    assert (folder / "log").exists()


def complete(*words: str) -> list[str]:
    """What Tab offers in bash for the last of these words."""
    environment = {
        "_VREPL_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["vrepl", *words]),
        "COMP_CWORD": str(len(words)),
    }
    said = CliRunner().invoke(main, [], prog_name="vrepl", env=environment).stdout
    return [line.partition(",")[2] for line in said.splitlines() if line]


def test_tab_offers_names(folder: Path) -> None:
    record = ReplicaRecord(replica_id("prod", "u"), "prod", "u", "web-01", "dr", "t", "web-01-replica", "demo")
    Repository.open(folder / "repository").create_replica(record)
    assert complete("replicate", "") == ["demo"]
    assert complete("vms", "p") == ["prod"]
    assert complete("plan", "--vm", "w") == complete("verify", "w") == ["web-01"]
    assert "--nagios" in complete("status", "--n")
    (folder / "vrepl.toml").write_text("nonsense")
    assert complete("replicate", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    assert "_VREPL_COMPLETE" in run("completion", shell).stdout
