"""5,000 VMs: what it takes to list and to select them, beside govc's own listing of the same properties. `make scale`.

govc is govmomi's client, in Go, over the same properties of the same lab, TLS and start of the process included. The
calls of the API are counted at 1,000 VMs and at 5,000: they must grow with the pages of the answer, and with nothing
else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vrepl.config.load import parse_selection
from vrepl.planner.selection import choose
from vrepl.vsphere.session import SiteSettings
from vrepl.vsphere.site import VsphereSite
from vrepl.vsphere.translation import VM_PATHS
from vrepl_lab.build import build_go_program
from vrepl_lab.lab import USER, Lab
from vrepl_lab.spec import estate_spec

FEW, MANY = 1_000, 5_000
GOVC = Path(__file__).parents[1] / "tests" / "govc"
SELECTION = 'tags = ["Backup/Gold"], exclude = { tags = ["Environment/Test"] }'


@contextmanager
def estate(vms: int) -> Iterator[Lab]:
    """A lab of so many VMs in folders, pools and vApps, with tags, on a file system in memory where there is one."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="vrepl-scale-", dir=place) as folder:
        lab = Lab.start(Path(folder) / "lab", estate_spec(vms), say=lambda line: None)
        try:
            yield lab
        finally:
            lab.stop()


@contextmanager
def prod(lab: Lab) -> Iterator[VsphereSite]:
    port, trusted = lab.sites["prod"].port, lab.folder / "ca.pem"
    with VsphereSite(SiteSettings("prod", "127.0.0.1", USER, lab.password("prod"), port=port, ca_file=trusted)) as site:
        site.login()
        yield site


def calls(lab: Lab) -> dict[str, int]:
    """Of a listing, and of a selection by tag, on a site that is logged in to."""
    wanted = parse_selection(SELECTION)
    with prod(lab) as site:
        before = site.soap_calls
        site.list_vms()
        listed = site.soap_calls
        found = choose(site.candidates(wanted.tag_patterns), [], wanted)
        assert found.vms
        return {"list": listed - before, "select": site.soap_calls - listed}


def seconds(run: Callable[[], str]) -> tuple[float, str]:
    """One run, and what it printed: at this size one is long enough to mean something."""
    begun = time.perf_counter()
    printed = run()
    return time.perf_counter() - begun, printed


def command(words: Sequence[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def govc_lists(lab: Lab) -> Callable[[], str]:
    program = build_go_program(GOVC, say=lambda line: None)
    environment = {
        "PATH": os.environ["PATH"],
        "GOVC_URL": f"https://127.0.0.1:{lab.sites['prod'].port}/sdk",
        "GOVC_USERNAME": USER,
        "GOVC_PASSWORD": lab.password("prod"),
        "GOVC_TLS_CA_CERTS": str(lab.folder / "ca.pem"),
        "GOVC_PERSIST_SESSION": "false",
        "GOVMOMI_HOME": str(lab.folder),
    }
    return lambda: command([str(program), "object.collect", "-json", "-type", "m", "/", *VM_PATHS], environment)


def run() -> dict[str, object]:
    vrepl = [sys.executable, "-c", "from vrepl.cli import main; main()"]
    with estate(FEW) as lab:
        few = calls(lab)
    with estate(MANY) as lab:
        many = calls(lab)
        configured = [*vrepl, "--config", str(lab.config_file)]
        ours, printed = seconds(lambda: command([*configured, "vms", "prod", "--json"]))
        assert len(json.loads(printed)["vms"]) >= MANY
        theirs, _ = seconds(govc_lists(lab))
        selected, _ = seconds(lambda: command([*configured, "vms", "prod", "--select", SELECTION, "--json"]))
        planned, _ = seconds(lambda: command([*configured, "plan", "demo", "--json"]))
    return {
        "vms": MANY,
        f"calls_list_{FEW}": few["list"],
        f"calls_list_{MANY}": many["list"],
        f"calls_select_{FEW}": few["select"],
        f"calls_select_{MANY}": many["select"],
        "seconds_vms": round(ours, 2),
        "seconds_govc": round(theirs, 2),
        "ratio": round(ours / theirs, 2),
        "seconds_select": round(selected, 2),
        "seconds_plan_three": round(planned, 2),
    }
