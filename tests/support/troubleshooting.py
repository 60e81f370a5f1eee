"""`make docs`: writes docs/troubleshooting.md from the errors in the source: every message, and what to do about it."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from functools import cache
from pathlib import Path

from vrepl import errors
from vrepl.errors import VreplError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
HEAD = """# Troubleshooting, by message

Every error is one line, `error: VM, disk, step: message`, and mostly a second one, `hint: what to do`. Here they stand
by kind; where a name or a figure would be, there is `…`. A run goes on with its other VMs when one fails, and goes on
where it stopped when it runs again. `vrepl diagnose` makes a file for those who are to help.

This page is made from the source by `make docs`.
"""
Found = dict[type[VreplError], dict[str, str]]
"""By kind of error: message -> hint."""


def kinds() -> dict[str, type[VreplError]]:
    return {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, VreplError)}


def words(node: ast.expr | None) -> str | None:
    """The text of a literal, with `…` for what is put in; None for anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(words(part) or "…" for part in parts)
        case ast.BinOp(left=left, op=ast.Add()):
            return words(left)
    return None


@cache
def messages() -> Found:
    known = kinds()
    found: Found = defaultdict(dict)
    for path in sorted((ROOT / "src" / "vrepl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in known:
                continue
            message = words(node.args[0]) if node.args else None
            hint = next((words(one.value) for one in node.keywords if one.arg == "hint"), None)
            if message is not None and any(char.isalpha() for char in message.replace("…", "")):
                found[known[node.func.id]].setdefault(message, hint or "")
    return found


def page() -> str:
    lines = [HEAD]
    for kind, texts in sorted(messages().items(), key=lambda pair: (pair[0].exit_code, pair[0].__name__)):
        lines.append(f"## {kind.__name__}: exit code {kind.exit_code}{', tried again' if kind.retryable else ''}\n")
        lines.append("| Message | What to do |\n|---|---|")
        lines += [f"| {_cell(message)} | {_cell(texts[message])} |" for message in sorted(texts, key=str.lower)]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
