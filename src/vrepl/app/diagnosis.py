"""`vrepl diagnose`: what somebody needs who is to help, in one file, without any secret."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vrepl import __version__
from vrepl.app.protection import protection
from vrepl.app.sites import now, open_repository
from vrepl.config import LoadedConfig
from vrepl.config.fields import SecretTable
from vrepl.config.show import effective, to_toml
from vrepl.errors import RepositoryError, VreplError
from vrepl.report.model import time_to_json
from vrepl.report.redact import redact
from vrepl.repository.check import check as check_repository
from vrepl.secrets import Secrets

LAST_RUNS = 20
LONGEST_TAIL = 5 * 1024 * 1024
"""Bytes of the end of a log or a trace."""
BUNDLE_MODE = 0o600
TOKEN_LENGTH = 8
"""Characters from which on a part of an address is taken for a secret of its own."""


def collect(
    loaded: LoadedConfig, checks: Callable[[], Sequence[Mapping[str, Any]]] | None, logs: Sequence[Path]
) -> dict[str, str]:
    """File name -> text, redacted. What cannot be had is told in its place; `checks` None: no site is asked."""
    parts: dict[str, Callable[[], str]] = {
        "versions.json": lambda: _json(versions()),
        "config.toml": lambda: to_toml(effective(loaded.config)),
        "status.json": lambda: _json(protection(loaded, open_repository(loaded), now()).to_json()),
        "repository.json": lambda: _json(_findings(loaded)),
    }
    if checks is not None:
        parts["checks.json"] = lambda: _json(list(checks()))
    for path in logs:
        parts[f"logs/{path.name}"] = lambda path=path: _tail(path)  # type: ignore[misc]
    texts = {name: _or_why(part) for name, part in parts.items()}
    for run in _or_none(lambda: open_repository(loaded).runs(LAST_RUNS, _passed_over)) or []:
        texts[f"runs/{run['run'].get('id')}.json"] = _json(run)
    known = list(secrets_of(loaded))
    return {name: redact(text, known) for name, text in texts.items()}


def write_bundle(path: Path, texts: Mapping[str, str]) -> None:
    """A .tar.gz for its owner alone. Raises VreplError."""
    folder = f"vrepl-diagnosis-{now():%Y%m%dT%H%M%SZ}"
    try:
        with (
            open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, BUNDLE_MODE), "wb") as file,
            tarfile.open(fileobj=file, mode="w:gz") as bundle,
        ):
            for name, text in texts.items():
                content = text.encode("utf-8", "backslashreplace")
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mode, entry.mtime = len(content), BUNDLE_MODE, int(now().timestamp())
                bundle.addfile(entry, io.BytesIO(content))
    except OSError as error:
        raise VreplError(f"{path} cannot be written: {error.strerror}") from error


def versions() -> dict[str, Any]:
    return {
        "vrepl": __version__,
        "time": time_to_json(now()),
        "python": sys.version,
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "processors": os.cpu_count(),
        "packages": {one.metadata["Name"]: one.version for one in metadata.distributions() if one.metadata["Name"]},
    }


def secrets_of(loaded: LoadedConfig) -> list[str]:
    """Every secret of the configuration that can be had: so that none slips into what is given away."""
    config = loaded.config
    tables = [site.password for site in config.sites.values()]
    tables += [*config.notify.urls, *([config.notify.ping] if config.notify.ping is not None else [])]
    found = [text for table in tables if (text := _or_none(lambda table=table: _secret(table))) is not None]  # type: ignore[misc]
    # The words of a command may hold a token.
    commands = [table.command[1:] for table in tables if table.command is not None]
    commands += [config.notify.on_finish[1:]] if config.notify.on_finish is not None else []
    whole = found + [word for words in commands for word in words]
    # A token may be told without the address that it stands in.
    parts = [part for text in whole for part in re.split(r"[/:@?&=\s]+", text) if len(part) >= TOKEN_LENGTH]
    return whole + parts


def _secret(table: SecretTable) -> str:
    # A copy of the environment: a variable that is read is taken out of what child processes get.
    return Secrets(dict(os.environ)).resolve(table.reference()).get_secret_value()


def _findings(loaded: LoadedConfig) -> list[dict[str, str]]:
    return [
        {"severity": one.severity.value, "path": one.path, "message": one.message}
        for one in check_repository(open_repository(loaded))
    ]


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - LONGEST_TAIL))
        return file.read().decode("utf-8", "replace")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _or_why(part: Callable[[], str]) -> str:
    try:
        return part()
    except (VreplError, OSError) as error:
        return f"this could not be had: {error}\n"


def _or_none(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except (VreplError, OSError):
        return None


def _passed_over(damaged: RepositoryError) -> None:
    """It stands among the findings."""
    del damaged
