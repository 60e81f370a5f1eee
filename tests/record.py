"""`python -m tests.record [-k EXPRESSION]`: record the API cassettes anew, from the lab and from plain govcsim.

Starts a small lab and an unextended govcsim, and runs the cassette tests against them in recording mode. What they
record is scrubbed (tests/support/cassettes.py); read the diff before you commit it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cassettes import FOLDER, RECORD_VARIABLE
from vrepl_lab.build import build_go_program
from vrepl_lab.certificates import Authority
from vrepl_lab.lab import USER, Lab
from vrepl_lab.spec import demo_spec

TESTS = Path(__file__).parent
PLAIN_SOURCES = TESTS / "plain_govcsim"
PLAIN_USER, PLAIN_PASSWORD = "operator@vsphere.local", "plain secret"


@contextmanager
def plain_govcsim(folder: Path) -> Iterator[dict[str, Any]]:
    """An unextended govcsim, built and run; gives its entry in the list of sites."""
    folder.mkdir()
    program = build_go_program(PLAIN_SOURCES)
    authority = Authority("cassette CA")
    (folder / "ca.pem").write_bytes(authority.pem)
    authority.issue(["127.0.0.1"]).write(folder / "cert.pem", folder / "key.pem")
    (folder / "password").touch(mode=0o600)
    (folder / "password").write_text(PLAIN_PASSWORD)
    arguments = ["--user", PLAIN_USER, "--password-file", "password", "--cert", "cert.pem", "--key", "key.pem"]
    with subprocess.Popen(
        [str(program), *arguments, "--vms", "1"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2].partition("/")[0])
        try:
            yield entry(port, PLAIN_USER, folder / "password", folder / "ca.pem")
        finally:
            process.kill()


def entry(port: int, user: str, password_file: Path, ca_file: Path) -> dict[str, Any]:
    return {"port": port, "user": user, "password_file": str(password_file), "ca_file": str(ca_file)}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="vrepl-rec-") as name:
        folder = Path(name)
        with Lab.start(folder / "lab", demo_spec(disk_mib=16)) as lab, plain_govcsim(folder / "plain") as plain:
            sites = {
                site: entry(running.port, USER, lab.folder / "secrets" / f"{site}-password", lab.folder / "ca.pem")
                for site, running in lab.sites.items()
            }
            servers = folder / "servers.json"
            servers.write_text(json.dumps({"sites": {**sites, "plain": plain}, "lab": str(lab.folder)}))
            os.environ[RECORD_VARIABLE] = str(servers)
            ended = pytest.main(
                [str(TESTS / "contract" / "test_vsphere_cassettes.py"), "-p", "no:xdist", "-x", *sys.argv[1:]]
            )
            leaked = leaks([PLAIN_PASSWORD, str(folder), *(lab.password(site) for site in lab.sites)])
            for place in leaked:
                print(f"{place}: holds what it must not; delete it", file=sys.stderr)
            return 1 if leaked else int(ended)


def leaks(secrets: list[str]) -> list[Path]:
    """Cassettes that hold one of these, which only the recording machine knows."""
    return [tape for tape in sorted(FOLDER.glob("*.yaml")) if any(secret in tape.read_text() for secret in secrets)]


if __name__ == "__main__":
    raise SystemExit(main())
