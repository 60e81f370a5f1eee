"""2 + 2 proxies, 40 disks, and all that may break breaks in one run: it succeeds, and nothing is left anywhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import far_proxies
from tests.support.far_proxies import NAMES
from tests.support.vrepl_runs import Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import LabSpec

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine"),
]
VMS, DISKS = 10, 4
SILENT_SECONDS = 60.0


def test_forty_disks_cross_whatever_breaks(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    """A mover of each side is killed, and the line between the sites is silent for a minute, all in mid-run."""
    runs = Runs(start_lab(far_proxies.estate(VMS, DISKS)), tmp_path)
    lab = runs.lab
    done = runs.cli("proxy", "install")
    assert done.returncode == 0, done.stderr
    runs.set_in_job("parallel_vms = 4", "parallel_disks = 16", "nfc_budget_mib = 96")
    for name in NAMES:
        runs.set_in_proxy(name, "slots = 8")
    kept = {name: far_proxies.files_on(lab, name) for name in NAMES}
    with far_proxies.line_between_sites(runs) as line:
        process = far_proxies.begin(runs, open_disks=4)
        far_proxies.kill_a_busy_mover(lab, "prod-proxy-1")
        time.sleep(3.0)
        far_proxies.wait_for_open_disks(runs, process, 4)
        far_proxies.kill_a_busy_mover(lab, "dr-proxy-2")
        time.sleep(3.0)
        far_proxies.wait_for_open_disks(runs, process, 4)
        time.sleep(2.0)
        line.cut()
        time.sleep(1.0)  # what was being handed on
        carried = line.bytes_carried
        time.sleep(SILENT_SECONDS)
        assert line.bytes_carried == carried
        assert process.poll() is None
        line.mend()
        vms, said = far_proxies.end(runs, process, 400)
        assert line.bytes_carried > carried, "the run had nothing left to send when the line was cut"
        assert len(vms) == VMS
        far_proxies.assert_equal_disks(runs, vms, DISKS)
        far_proxies.assert_nothing_is_left(runs)
        disks = [disk for vm in vms for disk in vm["disks"]]
        roads = {(disk["transport"]["source"]["mode"], disk["transport"]["target"]["mode"]) for disk in disks}
        assert roads == {("hotadd", "hotadd")}
        retries = sorted(retry for disk in disks for retry in disk["retries"])
        assert all(retry in said for retry in retries), "the report says what was said"
        # The silent minute was a pause for what was under way; what was to begin then began later.
        died = [retry for retry in retries if "no data mover starts on proxy prod-proxy-" not in retry]
        assert len(died) == 2, retries
        for name, retry in zip(("prod-proxy-1", "dr-proxy-2"), died, strict=True):
            assert f"on proxy {name}" in retry
    for name in NAMES:
        assert far_proxies.files_on(lab, name) == kept[name], name
