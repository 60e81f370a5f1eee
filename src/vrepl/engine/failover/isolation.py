"""Networks that lead nowhere, for clones of tests: made where they are needed, removed where they are not any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from vrepl.engine.failover.standing import KEY_TEST_NETWORK
from vrepl.engine.undo import Undo
from vrepl.ports.failover import Sandbox


@dataclass(slots=True)
class IsolatedNetwork:
    """A network without an uplink, made on each host where it is first needed."""

    site: Sandbox
    name: str
    hosts: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def on(self, host: str) -> str:
        """Its name, once it is there."""
        with self._lock:
            if host not in self.hosts:
                self.hosts.add(host)
                self.site.add_isolated_network(host, self.name)
        return self.name

    def remove_unused(self, note: Callable[[str], None]) -> None:
        """From every host where no clone is connected to it."""
        if not self.hosts:
            return
        with Undo(note) as undo:
            used = {vm.host for vm in self.site.list_vms() if vm.extra_config.get(KEY_TEST_NETWORK) == self.name}
            for host in sorted(self.hosts - used):
                undo.push(
                    f"remove the network {self.name} from {host}",
                    lambda host=host: self.site.remove_isolated_network(host, self.name),  # type: ignore[misc]
                )
