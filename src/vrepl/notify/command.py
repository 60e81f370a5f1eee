"""`on_finish`: a command of the operator's, which gets the report as JSON on its standard input."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from vrepl.errors import VreplError

SECONDS = 60.0
"""What the command may take; it is ended then."""


def run_command(command: Sequence[str], document: Mapping[str, Any]) -> None:
    """Raises VreplError where it cannot be started, does not end in time, or fails."""
    title = f"the on_finish command {command[0]}"
    try:
        done = subprocess.run(
            command,
            input=json.dumps(document).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise VreplError(f"{title} did not end within {SECONDS:.0f} s") from error
    except OSError as error:
        raise VreplError(f"{title} cannot be run: {error.strerror}", hint="give its full path") from error
    if done.returncode != 0:
        complaint = done.stderr[-2000:].decode(errors="replace").strip().splitlines()
        raise VreplError(f"{title} ended with status {done.returncode}" + (f": {complaint[-1]}" if complaint else ""))
