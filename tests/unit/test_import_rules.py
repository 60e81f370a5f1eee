"""No module imports itself by a detour, and the import contracts forget no room."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@pytest.mark.parametrize("package", ["vrepl", "vrepl_lab"])
def test_there_is_no_circle_of_imports(package: str) -> None:
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_but_vsphere_is_kept_from_pyvmomi() -> None:
    (contract,) = [one for one in CONTRACTS if one["name"] == "Only vsphere imports pyVmomi"]
    rooms = grimp.build_graph("vrepl", cache_dir=None).find_children("vrepl") - {"vrepl.vsphere", "vrepl.__main__"}
    assert sorted({*rooms, "vrepl_lab"}) == sorted(contract["source_modules"])


def test_a_failover_does_not_wait_for_what_only_replications_need() -> None:
    said = "import vrepl.cli.failover, vrepl.cli.running, vrepl.app.failover, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout.split()
    assert {"vrepl.vsphere.site", "vrepl.engine.failover.command"} <= set(loaded)
    heavy = (
        "cryptography",
        "vrepl.engine.run",
        "vrepl.engine.vm_run",
        "vrepl.movers",
        "vrepl.proxy",
        "vrepl.app.composition",
    )
    assert [name for name in loaded if name.startswith(heavy)] == []
