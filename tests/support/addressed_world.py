"""A replicated guest that has told its addresses, with rules for others at the target, in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.support.memory_site import HARDWARE
from tests.support.world import World
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.replicas import choose
from vrepl.extents import GRAIN
from vrepl.model import NetworkAdapter
from vrepl.model.addresses import AddressPolicy, AddressRule, FailoverPolicy, GuestAdapter, GuestNetwork
from vrepl.model.failover import Wish
from vrepl.report.failover import FailoverVm
from vrepl.report.model import Result

CARD = NetworkAdapter(4000, "Network adapter 1", "vmxnet3", "lan", "00:50:56:00:00:01", mac_is_static=False)
GUEST = GuestNetwork(
    "web-01", "example.com", ("10.1.0.53",), (),
    (GuestAdapter(4000, CARD.mac, "lan", ("10.1.7.5/24",), False, gateways=("10.1.7.1",)),),
)  # fmt: skip
RULES = AddressPolicy((AddressRule("10.2.0.0/16", "10.1.0.0/16"),), wait=5)
SET = ["10.2.7.5/24"]


def make_world(folder: Path, policy: AddressPolicy = RULES) -> World:
    world = World(folder)
    world.job = replace(world.job, failover=FailoverPolicy({}, policy))
    vm = world.source.add_vm("web-01", [8 * GRAIN])
    vm.hardware = replace(HARDWARE, network_adapters=(CARD,))
    vm.guest = GUEST
    for number in range(2):
        world.source.guest_write(vm, 0, number * GRAIN, bytes([number + 1]) * GRAIN)
        report = world.run_vm()
        assert report.result is Result.SUCCESS, report.error
    return world


def fail_over(world: World, wish: Wish, policy: FailoverPolicy | None = None) -> FailoverVm:
    """As a new process that knows what lies at the target alone."""
    failovers = Failovers(FailoverContext(world.engine().services, world.target), None)
    failovers.policy_of = lambda _replica: policy
    [replica] = choose(failovers.find(), ["web-01"])
    return failovers.run_one(replica, wish)


def texts(guest: GuestNetwork | None) -> list[str]:
    return [text for one in (guest.adapters if guest else ()) for text in one.addresses]
