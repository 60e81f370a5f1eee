"""Questions before what cannot be taken back."""

from __future__ import annotations

import sys

import click

from vrepl.errors import UsageError


def confirm(what: str, yes: bool) -> None:
    """Ask on the terminal, unless the answer was given already. Raises UsageError where nobody is there to be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"nobody is there to be asked: {what}?", hint="--yes answers every question")
    click.confirm(f"{what[0].upper()}{what[1:]}?", abort=True, err=True)
