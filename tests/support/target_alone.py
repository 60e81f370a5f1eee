"""A disaster: what ran vrepl is gone with all that it knew, and the target's site is what is left."""

from __future__ import annotations

import shutil
from pathlib import Path

from vrepl_lab.lab import SERVER, USER, Lab


def forget_all_but_the_target(lab: Lab, folder: Path) -> list[str]:
    """Delete repository and configuration; options that reach site `dr` without them, whose files lie in `folder`."""
    password = folder / "password"
    password.write_text(lab.password("dr"))
    password.chmod(0o600)
    ca_file = shutil.copy(lab.folder / "ca.pem", folder / "ca.pem")
    shutil.rmtree(lab.folder / "repository")
    lab.config_file.unlink()
    return [
        "--server", f"{SERVER}:{lab.sites['dr'].port}", "--user", USER, "--password-file", str(password),
        "--ca-file", str(ca_file),
    ]  # fmt: skip
