"""Finds, reads and validates the configuration file."""

from __future__ import annotations

import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vrepl.config.fields import INLINE_HINT
from vrepl.config.job import SelectTable
from vrepl.config.model import Config
from vrepl.config.references import near, reference_problems
from vrepl.errors import ConfigError, NotFoundError, UsageError
from vrepl.model import JobSettings
from vrepl.model.plans import FailoverPlan
from vrepl.model.selection import Selection, is_pattern

VARIABLE = "VREPL_CONFIG"
FILE_NAME = "vrepl.toml"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid configuration and the file it came from; all its paths are absolute."""

    path: Path
    config: Config

    def job(self, name: str) -> JobSettings:
        """Raises NotFoundError with near names."""
        table = self.config.jobs.get(name)
        if table is None:
            raise NotFoundError(
                f'there is no job "{name}"{near(name, self.config.jobs)}',
                hint=f"jobs in {self.path}: {', '.join(self.config.jobs) or 'none'}",
            )
        settings = table.settings(name)
        sides = (table.proxy.source, table.proxy.target)
        slots = [sum(self.config.proxies[proxy].slots for proxy in names) for names in sides if names]
        return replace(
            settings,
            plans=tuple(self.plans(table.target)),
            limits=replace(
                settings.limits,
                parallel_disks=min([settings.limits.parallel_disks, *slots]),
                nfc_mib_per_disk=self.config.vddk.nfc_mib_per_disk,
                proxy_slots={name: table.slots for name, table in self.config.proxies.items()},
            ),
        )

    def jobs(self, names: typing.Sequence[str] = ()) -> list[JobSettings]:
        """The jobs asked for, or all of them. Raises NotFoundError, or UsageError where there is none at all."""
        if not names and not self.config.jobs:
            raise UsageError(
                f"{self.path} has no job", hint="add a [jobs.NAME] table; `vrepl config init -` prints one"
            )
        return [self.job(name) for name in (dict.fromkeys(names) or self.config.jobs)]

    def plans(self, site: str | None = None) -> list[FailoverPlan]:
        """All plans, in their order; `site`: those whose VMs have, or may have, their replicas there."""
        jobs = [table.settings(name) for name, table in self.config.jobs.items()]
        made = [table.plan(name, rank) for rank, (name, table) in enumerate(self.config.plans.items())]
        return [plan for plan in made if site is None or not jobs or site in sites_of(plan, jobs)]

    def require_site(self, name: str) -> str:
        """The name itself. Raises NotFoundError with near names."""
        return self._require("site", "sites", name, self.config.sites)

    def require_proxy(self, name: str) -> str:
        """As `require_site`."""
        return self._require("proxy", "proxies", name, self.config.proxies)

    def _require(self, one: str, many: str, name: str, known: typing.Collection[str]) -> str:
        if name not in known:
            raise NotFoundError(
                f'there is no {one} "{name}"{near(name, known)}',
                hint=f"{many} in {self.path}: {', '.join(known) or 'none'}",
            )
        return name


def sites_of(plan: FailoverPlan, jobs: typing.Sequence[JobSettings]) -> list[str]:
    """Where the replicas of a plan's VMs are, by the jobs that may mean them."""
    found = {job.target: None for job in jobs for name in plan.names if is_pattern(name) or job.may_mean(name)}
    return list(found)


def search_path(environment: Mapping[str, str] | None = None) -> list[Path]:
    """Where a configuration is looked for when none is named, in order."""
    env = os.environ if environment is None else environment
    xdg = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "/")) / ".config")
    return [Path(FILE_NAME), xdg / "vrepl" / FILE_NAME, Path("/etc/vrepl") / FILE_NAME]


def find(explicit: Path | None = None, environment: Mapping[str, str] | None = None) -> Path:
    """The configuration file: as named, as $VREPL_CONFIG says, or the first that exists of `search_path`.

    Raises UsageError where there is none.
    """
    env = os.environ if environment is None else environment
    named = explicit or (Path(env[VARIABLE]) if env.get(VARIABLE) else None)
    if named is not None:
        if not named.is_file():
            origin = "--config" if explicit else f"${VARIABLE}"
            raise UsageError(
                f"there is no configuration file {named} ({origin})",
                hint=f"vrepl config init {named}   writes one to start from",
            )
        return named
    places = search_path(env)
    for place in places:
        if place.is_file():
            return place
    raise UsageError(
        f"there is no configuration file: looked for {', '.join(map(str, places))}",
        hint="vrepl config init   writes one to start from; --config FILE names another",
    )


def load(path: Path) -> LoadedConfig:
    """Read and validate one file.

    Raises ConfigError with every mistake at once (a TOML syntax error hides what follows it), UsageError where
    the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"the configuration {path} cannot be read: {reason}") from error
    return LoadedConfig(path.absolute(), parse(text, str(path), path.absolute().parent))


def parse(text: str, source: str, folder: Path) -> Config:
    """Validate the text of a configuration; relative paths in it are taken from `folder`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(source, [f"no valid TOML: {error}"], hint="https://toml.io explains the format") from error
    problems: list[str] = []
    config: Config | None = None
    raw = with_defaults(raw)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        # Only type, place and message are used: the input may be a password that stands where it should not.
        problems += _mistakes(error)
    problems += reference_problems(raw)
    if config is not None:
        problems += _budget_problems(config)
    if problems or config is None:
        raise ConfigError(source, list(dict.fromkeys(problems)), hint="docs/configuration.md lists every key")
    return _absolute(config, folder)


def parse_selection(text: str) -> Selection:
    """The inside of a job's `select = { ... }`. Raises UsageError."""
    hint = 'such as: tags = ["Backup/Gold"], exclude = { names = ["*-test"] }'
    try:
        table = SelectTable.model_validate(tomllib.loads(f"select = {{ {text} }}")["select"])
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--select is no valid TOML: {error}", hint=hint) from error
    except ValidationError as error:
        raise UsageError(f"--select: {'; '.join(_mistakes(error))}", hint=hint) from error
    return table.selection()


def with_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Each `[jobs.NAME]` with what `[defaults]` says of keys that it does not have itself."""
    defaults, jobs = raw.get("defaults"), raw.get("jobs")
    if not isinstance(defaults, Mapping) or not isinstance(jobs, Mapping):
        return dict(raw)
    return {
        **raw,
        "jobs": {name: {**defaults, **job} if isinstance(job, Mapping) else job for name, job in jobs.items()},
    }


def _budget_problems(config: Config) -> list[str]:
    """A single disk's NFC buffers must fit the budget of a host: twice where both ends may lie on one host."""
    problems = []
    for name, job in config.jobs.items():
        needed = config.vddk.nfc_mib_per_disk * (2 if job.source == job.target else 1)
        if job.nfc_budget_mib < needed:
            problems.append(f"jobs.{name}.nfc_budget_mib: one disk's NFC buffers ([vddk]) take {needed:g} MiB of it")
    return problems


def _mistakes(error: ValidationError) -> list[str]:
    """One text each. A list of tables that are wrong is not also told to be too short."""
    details = error.errors(include_url=False, include_input=False)
    places = [detail["loc"] for detail in details]

    def holds_others(place: tuple[int | str, ...]) -> bool:
        return any(len(other) > len(place) and other[: len(place)] == place for other in places)

    return [_describe(detail) for detail in details if detail["type"] != "too_short" or not holds_others(detail["loc"])]


def _describe(detail: ErrorDetails) -> str:
    """One mistake as `key path: what`."""
    location = tuple(part for part in detail["loc"] if part not in {"bool", "literal['source']"})
    path = ".".join(str(part) for part in location) or "the file"
    kind, message = detail["type"], detail["msg"]
    context = detail.get("ctx", {})
    match kind:
        case "extra_forbidden":
            key = str(location[-1])
            message = f"unknown key{near(key, _known_keys(location[:-1]))}"
        case "missing":
            message = "is missing"
        case "value_error":
            message = str(context.get("error", message))
        case "enum":
            message = f"takes {context.get('expected', '')}".replace("'", '"')
        case "string_pattern_mismatch" if location[-1:] == ("keyring",):
            message = 'takes "SERVICE/USER"'
        case "model_type" | "dict_type" if location[-1:] == ("password",):
            message = INLINE_HINT
        case "model_type" | "dict_type":
            message = "must be a table"
        case "too_short":
            message = "must not be empty"
        case "string_too_short":
            message = "must not be empty"
        case "greater_than_equal" | "less_than_equal":
            bound = context.get("ge", context.get("le"))
            message = f"must be at {'least' if kind == 'greater_than_equal' else 'most'} {bound}"
        case _:
            message = message.replace("Input should be", "should be").replace(" instance", "")
    return f"{path}: {message}"


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """The keys of the table at this place."""
    here: Any = Config
    for part in location:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            here = _table_in(here.model_fields[str(part)].annotation)
        # else: the name of a table within a dict of tables, whose type `here` is already
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _table_in(annotation: Any) -> Any:
    """The model within `Model`, `Model | None`, `dict[str, Model]` or `tuple[Model, ...]`."""
    if typing.get_origin(annotation) in {dict, tuple, typing.Annotated, typing.Union, types.UnionType}:
        for argument in typing.get_args(annotation):
            found = _table_in(argument)
            if isinstance(found, type) and issubclass(found, BaseModel):
                return found
    return annotation


def _absolute(config: Config, folder: Path) -> Config:
    """The same with every relative path taken from the folder of the file; `/x` stays as it is."""

    def anchor(value: Any) -> Any:
        if isinstance(value, Path):
            return folder / value
        if isinstance(value, BaseModel):
            return value.model_copy(update={key: anchor(getattr(value, key)) for key in value.model_fields_set})
        if isinstance(value, dict):
            return {key: anchor(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(anchor(item) for item in value)
        return value

    anchored = anchor(config)
    assert isinstance(anchored, Config)
    return anchored
