"""The job that replicates back is one that the configuration takes, and it is shown so that it can be copied."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path

import pytest

from vrepl.config import parse
from vrepl.report.console import make_console
from vrepl.report.failover import FailoverReport, FailoverVm, show_failover
from vrepl.report.model import Result
from vrepl.report.reprotection import ReverseJob

SITES = """
[sites.prod]
server = "vc.prod"
user = "u"
password = { file = "secret" }
[sites.dr]
server = "vc.dr"
user = "u"
password = { file = "secret" }
[repository]
path = "repository"
"""


def reverse(name: str = "web-back") -> ReverseJob:
    originals = {"web-01-replica": "web-01", 'odd "one"-replica': 'odd "one"'}
    return ReverseJob(name, "dr", "prod", originals, "prod-vmfs-01", {"DR Network": "VM Network"})


@pytest.mark.parametrize("name", ["web-back", 'odd "job" 1'])
def test_the_configuration_takes_it(name: str) -> None:
    table = parse(SITES + reverse(name).toml, "vrepl.toml", Path("/")).jobs[name]
    assert (table.source, table.target, table.target_datastore) == ("dr", "prod", "prod-vmfs-01")
    assert table.vms == ("web-01-replica", 'odd "one"-replica')
    assert table.networks == {"DR Network": "VM Network"}


def test_it_is_shown_as_it_is_to_be_written() -> None:
    report = FailoverReport([FailoverVm("web-01", "web-01-replica", Result.SUCCESS, "committed")])
    report.reverse_jobs = [reverse()]
    file = io.StringIO()
    show_failover(make_console(file=file, width=80), report)
    shown = [line.rstrip() for line in file.getvalue().splitlines()]
    at = shown.index("    [jobs.web-back]")
    text = "\n".join(line.removeprefix("    ") for line in shown[at : shown.index("then:")])
    assert tomllib.loads(text) == tomllib.loads(reverse().toml)
    assert 'vrepl replicate web-back --map web-01-replica=web-01 --map \'odd "one"-replica=odd "one"\'' in shown[-1]
    assert "\\n" not in file.getvalue()
