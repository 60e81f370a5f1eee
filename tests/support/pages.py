"""The blocks of the documentation: what a page says to type, to write into the configuration, or only shows.

A block is a run of lines that are indented by four spaces or more, or a fenced one. `<!-- not run: WHY -->` before it
says why no test types it; `<!-- nothing here is run: WHY -->` says it of all blocks of a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

NOT_RUN = re.compile(r"^ *<!-- not run: (.+) -->$")
WHOLE_PAGE = re.compile(r"^<!-- nothing here is run: (.+) -->$", re.M)
PROGRAMS = "vrepl|export|install|jq|ln|make|pip|pipx|python|python3|rm|sed|useradd"
COMMAND = re.compile(rf"^(?:\w+=\S+ )*(?:[\w./-]*/)?(?:{PROGRAMS})(?: |$)")
CRON = re.compile(r"^[*/\d,-]+ [*/\d,-]+ [*/\d,-]+ [*/\d,-]+ [*/\d,-]+ +vrepl +(.+)$")
SETTING = re.compile(r"^(?:\[[\w.-]+\]$|[\w-]+ = )")


@dataclass(frozen=True, slots=True)
class Block:
    page: Path
    line: int
    """Where it begins, from 1."""
    lines: tuple[str, ...]
    not_run: str | None
    """Why no test types it."""

    @property
    def is_configuration(self) -> bool:
        return bool(SETTING.match(self.lines[0]))

    @property
    def commands(self) -> list[str]:
        """What is to be typed, without the words beside it; empty where the block is something else."""
        found = []
        for line in self.lines:
            if cron := CRON.match(line):
                found.append(cron[1])
            elif COMMAND.match(line):
                found.append(re.split(r" {2,}", line)[0])
            else:
                return []
        return found

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    whole = WHOLE_PAGE.search(text)
    return [Block(page, line, lines, whole[1] if whole else mark) for line, lines, mark in _blocks(text.splitlines())]


def _blocks(lines: list[str]) -> Iterator[tuple[int, tuple[str, ...], str | None]]:
    """Of each: the number of its first line, its lines, and the mark before it."""
    mark, number = None, 0
    while number < len(lines):
        line = lines[number]
        begin = number
        if line.lstrip().startswith("```"):
            number += 1
            while not lines[number].lstrip().startswith("```"):
                number += 1
            number += 1
            yield begin + 2, tuple(lines[begin + 1 : number - 1]), mark
            mark = None
        elif re.match(r" {4,}\S", line):
            while number < len(lines) and (re.match(r" {4,}\S", lines[number]) or not lines[number].strip()):
                number += 1
            yield begin + 1, tuple(inner.strip() for inner in lines[begin:number] if inner.strip()), mark
            mark = None
        else:
            if said := NOT_RUN.match(line):
                mark = said[1]
            elif line.strip():
                mark = None
            number += 1
