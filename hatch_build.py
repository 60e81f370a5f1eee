"""Man pages, made from the commands' own help when a wheel is built: `man vrepl`, `man vrepl-replicate`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
    """Not for editable installs, whose help changes under them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        sys.path.insert(0, str(Path(self.root) / "src"))
        try:
            import click
            from click_man.core import write_man_pages

            from vrepl import __version__
            from vrepl.cli import COMMANDS, main

            # They are imported at their first use; the writer of man pages asks for those that are there.
            context = click.Context(main)
            main.commands = {name: main.get_command(context, name) for name in COMMANDS}

            self._folder = tempfile.TemporaryDirectory(prefix="vrepl-man-")
            write_man_pages("vrepl", main, version=__version__, target_dir=self._folder.name)
        finally:
            sys.path.pop(0)
        pages = sorted(Path(self._folder.name).glob("*.1"))
        build_data["shared_data"].update({str(page): f"share/man/man1/{page.name}" for page in pages})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            self._folder.cleanup()
