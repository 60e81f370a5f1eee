"""Which addresses a guest gets at a failover. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from vrepl.model.addresses import AddressRule


def rules_for(rules: Sequence[AddressRule], vm: str) -> tuple[AddressRule, ...]:
    """Those that mean a VM of this name, in their order."""
    return tuple(rule for rule in rules if any(fnmatchcase(vm, pattern) for pattern in rule.vms))
