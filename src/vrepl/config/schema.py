"""The configuration as a JSON Schema, made from the models that judge it: as a person writes it, not as it is kept."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel

from vrepl.config.failover import FailoverTable
from vrepl.config.fields import BandwidthTable, SecretTable
from vrepl.config.model import Config
from vrepl.config.plan import PlanGroupTable

WORDS: dict[str, Any] = {"type": "string"}
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Draft 2020-12. Where text stands for a value (`"30m"`, `"50 MiB/s"`), text is allowed as well."""
    made = Config.model_json_schema()
    _tell_short_forms(made)
    return {"$schema": DRAFT, **made, "title": "vrepl configuration"}


def _tell_short_forms(schema: dict[str, Any]) -> None:
    """What validators take beside the type that a value has afterwards."""
    tables = schema["$defs"]
    for table in tables.values():
        table.pop("title", None)
        for name, value in table.get("properties", {}).items():
            value.pop("title", None)
            if name in SHORT_FORMS:
                table["properties"][name] = _or_words(value)
    tables[BandwidthTable.__name__]["properties"]["windows"]["additionalProperties"] = WORDS
    vms = tables[PlanGroupTable.__name__]["properties"]["vms"]
    vms["items"] = _or_words(vms["items"])
    rules = tables[FailoverTable.__name__]["properties"]["addresses"]
    rules["items"] = _or_words(rules["items"])
    tables[SecretTable.__name__] |= {"minProperties": 1, "maxProperties": 1}


SHORT_FORMS = frozenset(
    {"rpo", "audit", "limit", "bandwidth", "command", "on_finish", "proxy", "host_pre_freeze", "host_post_thaw"}
    | {"delay", "gates", "gate_timeout", "before", "after", "script_timeout"}
)
"""Keys that take text for what is a number, a list or a table."""


def _or_words(value: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {key: value.pop(key) for key in ("default", "description") if key in value}
    return {"anyOf": [WORDS, *value.pop("anyOf", [value])], **kept}


def tables_of(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models of all tables within one, each once."""
    found: list[type[BaseModel]] = []
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            if inner not in found:
                found += [inner, *(one for one in tables_of(inner) if one not in found)]
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None:
        return []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
