"""Every command's JSON on the lab has the keys that `docs/json.md` writes, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.vrepl_runs import Runs
from tests.support.written_json import differences, written
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

pytestmark = pytest.mark.long


def test_what_commands_print_is_what_the_page_writes(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    vm = VmSpec("web-01", disks=(DiskSpec(2 * MIB, content="random", fill=0.5),))
    runs = Runs(start_lab(LabSpec.of_vms(vm, job_vms=["web-01"])), tmp_path)
    wrong: dict[str, list[str]] = {}

    def hold(heading: str, *words: str, more: frozenset[str] = frozenset(), code: int = 0) -> Any:
        """`more`: keys of a row that the page tells of in words."""
        real = runs.json(*words, code=code)
        shape, named = written(heading)
        found = [one for one in differences(real, shape, named) if one.split()[0].rpartition(".")[2] not in more]
        if found:
            wrong[" ".join(words)] = found
        return real

    hold("`check`", "check")
    hold("`vms SITE`", "vms", "prod")
    hold("`replicate`, `plan`, `report`", "plan", "demo")
    hold("`replicate`, `plan`, `report`", "replicate", "demo")
    runs.write(3)
    hold("`replicate`, `plan`, `report`", "replicate", "demo")
    hold("`replicate`, `plan`, `report`", "report")
    hold("`restore-points VM`", "restore-points", "web-01")
    hold("`verify`", "verify", "web-01")
    hold("`status`", "status")
    hold("`history`", "history")
    rows = "`failover start|undo|commit`"
    hold("`failover start", "failover", "test", "run", "web-01", "--yes", more=frozenset({"test"}))
    hold("`replicas`", "replicas")
    runs.lab.lose_power("prod", "web-01")
    hold(rows, "failover", "start", "web-01", "--yes")
    home = frozenset({"bytes_moved", "downtime_seconds"})
    hold(rows, "failback", "start", "web-01", "--power-off", "--yes", more=home)
    hold(rows, "failback", "undo", "web-01", "--yes", more=home)
    hold(rows, "failover", "undo", "web-01", "--yes")
    hold("`repository rebuild`", "repository", "rebuild")
    hold("`replicas remove VM`", "replicas", "remove", "web-01", "--yes")
    said = "\n".join(f"{command}: {one}" for command, all_of in wrong.items() for one in all_of)
    assert not wrong, said
