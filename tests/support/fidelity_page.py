"""What docs/fidelity.md says becomes of each attribute."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "fidelity.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def fates(title: str) -> dict[str, str]:
    """By the attribute's name, for each that a section names: copied, changed, choice, dropped or refused."""
    found = {}
    for names, fate in re.findall(r"^\| [^|]+ \| ([^|]*) \| (\w+) \|", section(title), re.M):
        for name in re.findall(r"`(\w+)`", names):
            found[name] = fate
    return found
