"""Runs every benchmark, or those named, and prints a table on standard error and JSON on standard output."""

from __future__ import annotations

import json
import os
import pkgutil
import platform
import sys
from importlib import import_module
from pathlib import Path

import benchmarks

LOAD_BEFORE = round(os.getloadavg()[0], 2)
"""Runnable processes of this machine over the last minute: well below one, if the figures are to mean something."""
ADMISSION = "admission_makespan_vs_bound"
OWN_ENGINES = {"own_nbd", "own_hotadd"}
LATEST = Path(__file__).parent / "results" / "latest.json"


def machine() -> dict[str, object]:
    """What the figures are of."""
    return {
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": LOAD_BEFORE,
    }


def write_latest(results: dict[str, dict[str, object]]) -> None:
    """Keep the figures of this run: those of the data path and of an engine as a whole (who is not there has none)."""
    latest = json.loads(LATEST.read_text()) if LATEST.is_file() else {"machine": {}, "ratios": {}}
    if "datapath" in results:
        figures = dict(results["datapath"])
        latest["machine"] = machine() | {"files": "memory (tmpfs)" if figures.pop("files_in_memory") else "disk"}
        latest["ratios"] = {key: value for key, value in latest["ratios"].items() if key == ADMISSION} | figures
    if "far_movers" in results:
        latest["far_movers"] = {"machine": machine(), **results["far_movers"]}
    if "admission" in results:
        latest["ratios"][ADMISSION] = results["admission"]["ratio"]
    for name in OWN_ENGINES & results.keys():
        latest[name] = results[name] | {"load_before": LOAD_BEFORE}
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_text(json.dumps(latest, indent=2) + "\n")


def main(names: list[str]) -> int:
    """A benchmark is a module of this folder with a function `run` that returns its figures."""
    found = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")]
    unknown = sorted(set(names) - set(found))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(found)}", file=sys.stderr)
        return 2
    results = {}
    for name in names or found:
        run = getattr(import_module(f"benchmarks.{name}"), "run", None)
        if run is None:
            continue
        print(f"{name} ...", file=sys.stderr)
        results[name] = run()
        for key, value in results[name].items():
            print(f"  {key:<16} {value}", file=sys.stderr)
    write_latest(results)
    print(json.dumps({"version": 1, "benchmarks": results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
