"""Which proxy serves which end of a VM's disks: the best mode, one proxy for both ends, then the least load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory_site import HARDWARE
from vrepl.errors import ConnectionFailedError, DiskError
from vrepl.model import Disk, ModeChoice, PowerState, Side, TransportMode, TransportPlan, VirtualMachine
from vrepl.proxy.placement import STRIKES, ProxyPlacement

HOTADD, NBD = TransportMode.HOTADD, TransportMode.NBDSSL
ALLOWED = (TransportMode.SAN, HOTADD, NBD)
DISK = Disk(2000, 0, "Hard disk 1", "[a] web/web.vmdk", "[a] web/web.vmdk", 1 << 20, "uuid", "a")


def vm(name: str) -> VirtualMachine:
    return VirtualMachine(f"vm-{name}", name, name, name, PowerState.ON, "esx", "dc", "group", HARDWARE, (DISK,))


@dataclass
class Chooser:
    """Of one proxy: the mode by which it reaches each site; a site that it does not reach is refused."""

    modes: dict[str, TransportMode]
    down: bool = False
    seen: list[str] = field(default_factory=list)

    def plan(
        self,
        side: Side,
        site: str,
        vm: VirtualMachine,
        disk: Disk,
        *,
        first_run: bool,
        allowed: Sequence[TransportMode],
        beside: str | None = None,
    ) -> TransportPlan:
        del side, disk, first_run, beside
        self.seen.append(vm.name)
        if self.down:
            raise ConnectionFailedError("no route to host")
        if site not in self.modes or self.modes[site] not in allowed:
            raise DiskError("no transport mode reaches it")
        return TransportPlan((ModeChoice(self.modes[site], "it does"),))

    def failed(self, site: str, datastore: str, mode: TransportMode, reason: str) -> None: ...
    def proxy_failed(self, site: str, vm: VirtualMachine, proxy: str) -> None: ...
    def left_on_proxy(self, site: str, vm: VirtualMachine) -> bool:
        return False

    def detached(self, site: str, vm: VirtualMachine, count: int) -> None: ...


@dataclass
class Setup:
    """`source` and `target`: the proxies of the two sites, in the order of the configuration."""

    modes: dict[str, dict[str, TransportMode]]
    source: Sequence[str]
    target: Sequence[str]
    slots: dict[str, int] = field(default_factory=dict)
    choosers: dict[str, Chooser] = field(init=False)
    placement: ProxyPlacement = field(init=False)

    def __post_init__(self) -> None:
        self.choosers = {name: Chooser(modes) for name, modes in self.modes.items()}
        sides = {"prod": self.source, "dr": self.target}
        self.placement = ProxyPlacement(self.choosers, sides.__getitem__, self.slots, sites=tuple(sides))

    def ends(self, name: str) -> tuple[str, str]:
        """Of one disk, as a crossing asks for them: its source's proxy, and its target's."""
        source = self.placement.plan(Side.SOURCE, "prod", vm(name), DISK, first_run=True, allowed=ALLOWED)
        target = self.placement.plan(
            Side.TARGET, "dr", vm(f"{name}-replica"), DISK, first_run=True, allowed=ALLOWED, beside=source.proxy
        )
        return str(source.proxy), str(target.proxy)


EITHER = {"prod": NBD, "dr": NBD}


def test_one_proxy_that_reaches_both_sites_takes_both_ends() -> None:
    setup = Setup({"a": EITHER, "b": EITHER}, ["a", "b"], ["b", "a"])
    found = [setup.ends(f"web-{number}") for number in range(6)]
    assert all(source == target for source, target in found)
    assert {source for source, _ in found} == {"a", "b"}, "the work is shared all the same"


def test_one_of_several_that_reaches_both_sites_is_taken_before_those_of_one() -> None:
    setup = Setup({"a": {"prod": NBD}, "b": EITHER, "c": {"dr": NBD}}, ["a", "b"], ["c", "b"])
    assert {setup.ends(f"web-{number}") for number in range(4)} == {("b", "b")}


def test_a_better_mode_is_worth_a_stream() -> None:
    """HotAdd at both ends, on a proxy at each, is what several proxies are for."""
    setup = Setup({"a": EITHER, "b": {"dr": HOTADD}, "c": {"prod": HOTADD}}, ["a", "c"], ["a", "b"])
    assert setup.ends("web-1") == ("c", "b")


def test_a_mode_that_only_one_end_has_does_not_move_the_other() -> None:
    setup = Setup({"a": EITHER, "b": {"prod": HOTADD, "dr": NBD}}, ["a", "b"], ["a", "b"])
    assert setup.ends("web-1") == ("b", "b")


def test_the_least_loaded_for_its_slots() -> None:
    setup = Setup(
        {"a": {"prod": NBD}, "b": {"prod": NBD}, "c": {"dr": NBD}}, ["a", "b"], ["c"], {"a": 3, "b": 1, "c": 4}
    )
    found = [setup.ends(f"web-{number}")[0] for number in range(8)]
    assert (found.count("a"), found.count("b")) == (6, 2)
    assert setup.ends("web-0")[0] == found[0], "a VM stays where it is"


def test_a_vm_goes_elsewhere_when_its_proxy_failed_and_others_stay() -> None:
    setup = Setup({"a": EITHER, "b": EITHER}, ["a", "b"], ["a", "b"])
    assert setup.ends("web-1") == ("a", "a")
    assert setup.ends("web-2") == ("b", "b")
    setup.placement.proxy_failed("prod", vm("web-1"), "a")
    assert setup.ends("web-1") == ("b", "a"), "its other end is where it was: nothing failed there"
    setup.placement.proxy_failed("dr", vm("web-1-replica"), "a")
    assert setup.ends("web-1") == ("b", "b")
    assert setup.ends("web-2") == ("b", "b")


def test_the_last_proxy_is_tried_again_and_again() -> None:
    setup = Setup({"a": EITHER}, ["a"], ["a"])
    for _ in range(2 * STRIKES):
        assert setup.ends("web-1") == ("a", "a")
        setup.placement.proxy_failed("prod", vm("web-1"), "a")


def test_one_that_does_not_answer_is_left_out() -> None:
    setup = Setup({"a": EITHER, "b": EITHER}, ["a", "b"], ["a", "b"])
    setup.choosers["a"].down = True
    assert {setup.ends(f"web-{number}") for number in range(3)} == {("b", "b")}
    assert len(setup.choosers["a"].seen) <= 2, "it is not asked for every VM anew"
    setup.choosers["b"].down = True
    with pytest.raises(ConnectionFailedError):
        setup.ends("web-9")


NAMES = ("a", "b", "c", "d")
MODES = st.dictionaries(st.sampled_from(("prod", "dr")), st.sampled_from((HOTADD, NBD)), min_size=1)


@given(
    modes=st.fixed_dictionaries(dict.fromkeys(NAMES, MODES)),
    source=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    target=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    failures=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=8),
)
def test_whatever_fails_each_end_has_the_best_mode_that_is_left(
    modes: dict[str, dict[str, TransportMode]],
    source: list[str],
    target: list[str],
    failures: list[tuple[int, bool]],
) -> None:
    """And no two proxies where one has both ends by modes that are as good, before anything failed."""
    reach = {
        site: {name: modes[name][site] for name in names if site in modes[name]}
        for site, names in (("prod", source), ("dr", target))
    }
    if not reach["prod"] or not reach["dr"]:
        return
    setup = Setup(modes, source, target)
    best = {site: HOTADD if HOTADD in reached.values() else NBD for site, reached in reach.items()}
    both = [n for n in NAMES if all(reach[site].get(n) is best[site] for site in reach)]
    for number in range(5):
        first, second = setup.ends(f"web-{number}")
        assert (reach["prod"][first], reach["dr"][second]) == (best["prod"], best["dr"])
        assert first == second or first not in both
    for number, at_source in failures:
        name = f"web-{number}"
        ends = setup.ends(name)
        site, whose = ("prod", name) if at_source else ("dr", f"{name}-replica")
        setup.placement.proxy_failed(site, vm(whose), ends[0 if at_source else 1])
        first, second = setup.ends(name)
        assert first in reach["prod"]
        assert second in reach["dr"]
