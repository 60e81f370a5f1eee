"""Which VMs of a site a job's names, patterns and criteria mean. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vrepl.model.selection import Candidate, Criteria, Selection, is_pattern


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was found, in the order of the job: its names first, then the rest by name."""

    vms: tuple[Candidate, ...]
    missing: tuple[str, ...] = ()
    """Names (not patterns) that no VM has."""
    ambiguous: tuple[str, ...] = ()
    """Names (not patterns) that several VMs have."""
    idle: tuple[str, ...] = ()
    """Patterns that match nothing."""


def choose(candidates: Iterable[Candidate], names: Sequence[str], selection: Selection) -> Chosen:
    """The union of what `names` (each a name or a pattern) and the criteria mean, less what is excluded.

    Templates are never meant by a pattern, and by a name only where no VM has it. A VM that is named and excluded is
    excluded: the exclusion was written later.
    """
    everything = sorted(candidates, key=lambda one: (one.name, one.ref))
    machines = [one for one in everything if not one.template]
    found: dict[str, Candidate] = {}
    missing, ambiguous, idle = [], [], []
    for name in names:
        exact = [one for one in machines if one.name == name] or [one for one in everything if one.name == name]
        if len(exact) == 1:
            found.setdefault(exact[0].ref, exact[0])
        elif exact:
            ambiguous.append(name)
        elif is_pattern(name):
            matching = [one for one in machines if fnmatchcase(one.name, name)]
            found.update({one.ref: one for one in matching if one.ref not in found})
            if not matching:
                idle.append(name)
        else:
            missing.append(name)
    if not selection.wanted.is_empty:
        found.update({one.ref: one for one in machines if one.ref not in found and meets_all(one, selection.wanted)})
    vms = tuple(one for one in found.values() if not meets_any(one, selection.excluded))
    return Chosen(vms, tuple(missing), tuple(ambiguous), tuple(idle))


def meets_all(vm: Candidate, criteria: Criteria) -> bool:
    """Whether the VM answers to every kind that says something."""
    return all(answers for said, answers in _answers(vm, criteria) if said)


def meets_any(vm: Candidate, criteria: Criteria) -> bool:
    """Whether the VM answers to some kind that says something."""
    return any(answers for said, answers in _answers(vm, criteria) if said)


def _answers(vm: Candidate, criteria: Criteria) -> list[tuple[bool, bool]]:
    """For each kind: whether it says something, and whether the VM answers to it."""
    simple = (
        (criteria.names, (vm.name,)),
        (criteria.paths, (vm.path,)),
        (criteria.folders, _with_all_above(vm.folder)),
        (criteria.pools, _with_all_above(vm.pool)),
        (criteria.vapps, vm.vapps),
        (criteria.clusters, (vm.cluster,)),
        (criteria.hosts, (vm.host,)),
        (criteria.datastores, vm.datastores),
        (criteria.tags, vm.tags),
    )
    answers = [(bool(patterns), _any(patterns, values)) for patterns, values in simple]
    attributes = all(fnmatchcase(vm.attributes.get(name, ""), pattern) for name, pattern in criteria.attributes.items())
    answers.append((bool(criteria.attributes), attributes))
    answers.append((criteria.power is not None, vm.power is criteria.power))
    return answers


def _any(patterns: Iterable[str], values: Iterable[str]) -> bool:
    present = [value for value in values if value]
    return any(fnmatchcase(value, pattern) for pattern in patterns for value in present)


def _with_all_above(path: str) -> tuple[str, ...]:
    """`a/b/c` -> `a/b/c`, `a/b`, `a`: what is named holds all that is below it."""
    parts = path.split("/")
    return tuple("/".join(parts[:length]) for length in range(len(parts), 0, -1))
