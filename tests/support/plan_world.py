"""What failover plans meet in a world of memory: guests that boot for a while, and this machine with its commands."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.support.world import World
from vrepl.model import GuestState
from vrepl.model.guests import ProgramEnd


@dataclass
class Guests:
    """What runs in replicas: it boots for a while, then it serves, unless it is sick."""

    world: World
    boots_in: Callable[[str], float] = lambda name: 0.0
    sick: set[str] = field(default_factory=set)
    powered_on: dict[str, float] = field(default_factory=dict)
    serves: dict[str, float] = field(default_factory=dict)
    takes: float = 0.0
    """Seconds of a power-on."""
    most: dict[str, int] = field(default_factory=dict)
    """By host: power-ons that were under way at once."""

    def __post_init__(self) -> None:
        site = self.world.target
        real_power_on, real_state = site.power_on, site.guest_state
        lock, now = threading.Lock(), Counter[str]()

        def power_on(vm_ref: str) -> None:
            name = site.vms[vm_ref].name.removesuffix("-replica")
            host = site.vms[vm_ref].host
            began = time.monotonic()
            with lock:
                now[host] += 1
                self.most[host] = max(self.most.get(host, 0), now[host])
            time.sleep(self.takes)
            real_power_on(vm_ref)
            with lock:
                now[host] -= 1
                self.powered_on[name] = began
                self.serves[name] = time.monotonic() + self.boots_in(name)

        def guest_state(vm_ref: str) -> GuestState:
            name = site.vms[vm_ref].name.removesuffix("-replica")
            found = real_state(vm_ref)
            serves = name not in self.sick and time.monotonic() >= self.serves.get(name, 0)
            return found if serves else replace(found, heartbeat="red")

        site.power_on = power_on  # type: ignore[method-assign]
        site.guest_state = guest_state  # type: ignore[method-assign]


@dataclass
class Machine:
    """This machine: what answers from here, and commands that are run on it."""

    status: dict[str, int] = field(default_factory=dict)
    ran: list[tuple[str, ...]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    environments: list[Mapping[str, str]] = field(default_factory=list)

    def connects(self, address: str, port: int) -> bool:
        return (address, port) == ("10.0.0.1", 5432)

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
        self.asked.append((command[0], environment["VREPL_VM"]))
        return self.status.get(command[0], 0), "says the script"

    def run_command(self, words: Sequence[str], environment: Mapping[str, str], *, within: float) -> ProgramEnd:
        self.ran.append(tuple(words))
        self.environments.append(environment)
        return ProgramEnd(self.status.get(words[0], 0), b"says the command\n")
