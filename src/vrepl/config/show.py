"""The effective configuration, defaults included, as TOML or JSON values."""

from __future__ import annotations

import json
import shlex
from typing import Any

from vrepl.config.fields import BandwidthTable, SecretTable
from vrepl.config.model import Config
from vrepl.config.plan import PlanTable
from vrepl.config.units import format_rate


def effective(config: Config) -> dict[str, Any]:
    """Plain values; keys without a value are left out, and a secret shows where it comes from, never itself.

    The words of a command are masked but the first: they may hold something like a token.
    """
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    for name, site in config.sites.items():
        values["sites"][name]["password"] = _secret(site.password)
        values["sites"][name]["bandwidth"] = _bandwidth(site.bandwidth)
    for name, job in config.jobs.items():
        values["jobs"][name]["bandwidth"] = _bandwidth(job.bandwidth)
        del values["jobs"][name]["proxy"]
        if job.proxy.written:
            values["jobs"][name]["proxy"] = job.proxy.written
    for name, plan in config.plans.items():
        values["plans"][name] = _plan(plan, values["plans"][name])
    notify = config.notify
    if notify.on_finish is not None:
        values["notify"]["on_finish"] = _masked(notify.on_finish)
    values["notify"]["urls"] = [_secret(url) for url in notify.urls]
    if notify.ping is not None:
        values["notify"]["ping"] = _secret(notify.ping)
    return values


def _secret(table: SecretTable) -> dict[str, Any]:
    reference = table.reference()
    return {reference.kind: _masked(reference.value) if reference.kind == "command" else reference.value[0]}


def _plan(plan: PlanTable, values: dict[str, Any]) -> dict[str, Any]:
    """With its commands masked, those of gates as well."""

    def masked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: _gates(item) if key == "gates" else masked(item) for key, item in value.items()}
        return [masked(item) for item in value] if isinstance(value, list) else value

    made: dict[str, Any] = masked(values)
    for key, command in (("before", plan.before), ("after", plan.after)):
        if command is not None:
            made[key] = _masked(command)
    return made


def _gates(texts: list[str]) -> list[str]:
    kinds = [(text, *text.partition(":")) for text in texts]
    return [
        f"script:{shlex.join(_masked(tuple(shlex.split(rest))))}" if kind == "script" else text
        for text, kind, _, rest in kinds
    ]


def _masked(command: tuple[str, ...]) -> list[str]:
    return [command[0], *("***" for _ in command[1:])]


def _bandwidth(table: BandwidthTable) -> dict[str, Any]:
    return {
        "limit": format_rate(table.limit),
        "windows": {window: format_rate(rate) for window, rate in table.windows.items()},
    }


def to_toml(values: dict[str, Any]) -> str:
    """TOML text of plain values: tables of tables get headers, small tables stay in their line."""
    lines: list[str] = []
    for name, table in values.items():
        if all(isinstance(value, dict) for value in table.values()) and name in {"sites", "proxies", "jobs", "plans"}:
            for key, inner in table.items():
                lines += _table(f"{name}.{_key(key)}", inner)
        else:
            lines += _table(name, table)
    return "\n".join(lines).rstrip("\n") + "\n"


def _table(header: str, table: dict[str, Any]) -> list[str]:
    return [f"[{header}]", *(f"{_key(key)} = {_value(value)}" for key, value in table.items()), ""]


def _key(key: str) -> str:
    return key if key and all(char.isascii() and (char.isalnum() or char in "-_") for char in key) else json.dumps(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            inner = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(_value(item) for item in value)}]"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)
