"""Data as words on a line. Names come from vCenters, paths from people, complaints from other programs: none of them is
trusted to be one line of plain text, so every view (console, log, HTML, files) passes them through here."""

from __future__ import annotations

import unicodedata

_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, lone surrogates, and separators of lines and paragraphs."""
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They change the direction of what follows: `txt.exe` may read `exe.txt` (UAX #9, "Bidirectional character types")."""


def printable(text: object) -> str:
    """The text on one line, with nothing in it that a terminal obeys: `\\n`, `\\x1b`, `\\u202e` stand as escapes."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(_escape(char) if _is_unfit(char) else char for char in plain)


def _is_unfit(char: str) -> bool:
    return char in _TURNING or unicodedata.category(char) in _UNSEEN


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
