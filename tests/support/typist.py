"""Types what a page says to type, in a shell, in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Typist:
    """`stand_ins`: words of the page that stand for the reader's own, and what takes their place here."""

    def __init__(self, folder: Path, stand_ins: Mapping[str, str] | None = None, **environment: str) -> None:
        self.folder = folder
        self.typed: list[str] = []
        programs = folder / "programs"
        programs.mkdir(parents=True)
        wrapper = programs / "vrepl"
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m vrepl "$@"\n')
        wrapper.chmod(0o700)
        self._stand_ins = {".venv/bin/vrepl": "vrepl", "/usr/local/bin/vrepl": "vrepl", **(stand_ins or {})}
        self._environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(folder / "state"),
            **environment,
        }

    def in_other_words(self, text: str) -> str:
        for word, stand_in in self._stand_ins.items():
            text = text.replace(word, stand_in)
        return text

    def type(self, line: str) -> str:
        """What it writes to stdout. It must end with exit code 0, and no control code may be in it."""
        self.typed.append(line)
        line = self.in_other_words(line)
        process = subprocess.Popen(
            ["sh", "-c", f"exec {line}" if "--watch" in line else line],
            cwd=self.folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        seen = ""
        if "--watch" in line:  # it ends with Ctrl-C only
            assert process.stdout is not None
            while "Ctrl-C ends" not in seen and (more := process.stdout.readline()):
                seen += more
            process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
        done = subprocess.CompletedProcess(line, process.returncode, seen + stdout, stderr)
        assert done.returncode == 0, f"{line}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
        assert "\x1b" not in done.stdout + done.stderr, "no control codes where nobody looks at a terminal"
        return done.stdout
