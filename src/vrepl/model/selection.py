"""Which VMs a job replicates, by what they are rather than by their names; evaluated at every run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from vrepl.model.machines import PowerState

_PATTERN = re.compile(r"[*?]|\[.+\]")


def is_pattern(name: str) -> bool:
    """Whether a name in a job may mean several VMs."""
    return _PATTERN.search(name) is not None


@dataclass(frozen=True, slots=True)
class Criteria:
    """Patterns as the shell knows them (`*`, `?`, `[abc]`), by kind; an empty kind says nothing."""

    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    """Inventory paths: `datacenter/folder/.../VM`."""
    folders: tuple[str, ...] = ()
    """Paths of folders; one that is named holds all that is below it."""
    pools: tuple[str, ...] = ()
    """Paths of resource pools, below their cluster or host: `cluster/pool`; likewise with all below."""
    vapps: tuple[str, ...] = ()
    clusters: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    datastores: tuple[str, ...] = ()
    """Any datastore that a file of the VM lies on."""
    tags: tuple[str, ...] = ()
    """`Category/Tag`."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Custom attribute -> pattern of its value."""
    power: PowerState | None = None

    @property
    def is_empty(self) -> bool:
        return all(not getattr(self, one.name) for one in fields(self))


@dataclass(frozen=True, slots=True)
class Selection:
    """What is wanted, less what is excluded."""

    wanted: Criteria = field(default_factory=Criteria)
    """A VM must answer to every kind that says something, by any pattern of that kind."""
    excluded: Criteria = field(default_factory=Criteria)
    """A VM that answers to any pattern of any kind is left out."""

    @property
    def is_empty(self) -> bool:
        return self.wanted.is_empty and self.excluded.is_empty

    @property
    def tag_patterns(self) -> tuple[str, ...]:
        """Of what is wanted and what is excluded: which tags are worth asking for."""
        return self.wanted.tags + self.excluded.tags


@dataclass(frozen=True, slots=True)
class Candidate:
    """A VM of a site as far as selecting goes; read for all VMs at once."""

    ref: str
    name: str
    path: str
    folder: str = ""
    pool: str = ""
    vapps: tuple[str, ...] = ()
    cluster: str = ""
    host: str = ""
    datastores: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    power: PowerState = PowerState.OFF
    template: bool = False
