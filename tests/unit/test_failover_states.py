"""A replica's failover state outlives reverts, writes that are cut off, and others who write it at the same time."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory_site import MemorySite
from vrepl.engine.failover import states
from vrepl.engine.failover.states import SLOTS, ReplicaStates, decode, encode
from vrepl.errors import LockedError, RepositoryError
from vrepl.model import PowerState, ReplicaState, VirtualMachine
from vrepl.model.failover import FailoverRecord

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


def world() -> tuple[MemorySite, VirtualMachine, FailoverRecord]:
    site = MemorySite("dr", lambda: NOW)
    vm = site.read_vm(site.add_vm("web-replica", [1 << 20], power=PowerState.OFF).ref)
    return site, vm, FailoverRecord("repo", "prod", "source", "web", vm.instance_uuid)


records = st.builds(
    FailoverRecord,
    st.text(), st.text(), st.text(), st.text(), st.text(),
    epoch=st.integers(0, 2**40),
    state=st.sampled_from(ReplicaState),
    restore_point=st.none() | st.text(),
    base_change_ids=st.none() | st.dictionaries(st.integers(0, 5000), st.none() | st.text(), max_size=3),
    planned=st.booleans(),
    deadline=st.none() | st.datetimes(timezones=st.just(dt.UTC)),
    networks=st.dictionaries(st.text(), st.text(), max_size=3),
)  # fmt: skip


@given(records)
def test_what_is_written_is_read(record: FailoverRecord) -> None:
    assert decode(encode(record, "me")) == (record, "me")


@given(records, st.data())
def test_a_bit_that_flips_is_never_believed(record: FailoverRecord, data: st.DataObject) -> None:
    content = bytearray(encode(record, "me"))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    found = decode(bytes(content))
    assert found is None or found == (record, "me"), "white space may change, the record may not"


def test_the_highest_epoch_counts_and_a_write_that_was_cut_off_does_not() -> None:
    site, vm, record = world()
    kept = ReplicaStates(site, "me")
    assert kept.read(vm) is None
    first = replace(record, epoch=1, state=ReplicaState.FAILING_OVER, restore_point="p1")
    kept.save(vm, first)
    second = replace(first, epoch=2, state=ReplicaState.FAILED_OVER)
    site.vms[vm.ref].files[SLOTS[0]] = encode(second, "me")[:-40]
    assert kept.read(vm) == first
    kept.save(vm, second)
    assert kept.read(vm) == second


def test_of_two_who_change_the_same_state_one_finds_out() -> None:
    site, vm, record = world()
    mine, theirs = ReplicaStates(site, "me"), ReplicaStates(site, "you")
    mine.save(vm, replace(record, epoch=1))
    theirs.save(vm, replace(record, epoch=2, restore_point="theirs"))
    with pytest.raises(LockedError, match="another process changed the state"):
        mine.save(vm, replace(record, epoch=2, restore_point="mine"))
    found = mine.read(vm)
    assert found is not None
    assert found.restore_point == "theirs"


def test_of_two_who_write_at_the_same_moment_the_last_one_wins_and_the_other_is_told() -> None:
    site, vm, record = world()
    mine, theirs = ReplicaStates(site, "me"), ReplicaStates(site, "you")

    def meanwhile(method: str) -> None:
        if method == "write_vm_file":
            site.after_call = lambda _: None
            site.vms[vm.ref].files[SLOTS[1]] = encode(replace(record, epoch=1, restore_point="theirs"), "you")

    site.after_call = meanwhile
    with pytest.raises(LockedError):
        mine.save(vm, replace(record, epoch=1, restore_point="mine"))
    found = theirs.read(vm)
    assert found is not None
    assert found.restore_point == "theirs"


def test_the_state_of_a_clone_is_not_its_originals() -> None:
    site, vm, record = world()
    kept = ReplicaStates(site, "me")
    kept.save(vm, replace(record, epoch=1))
    clone = site.read_vm(site.add_vm("clone", [1 << 20]).ref)
    site.vms[clone.ref].files = dict(site.vms[vm.ref].files)
    assert kept.read(clone) is None


def test_a_newer_format_is_refused() -> None:
    _, _, record = world()
    newer = states.encode(record, "me").replace(b'"format": 1', b'"format": 2')
    assert decode(newer) is None, "without its sum it is damaged"
    original = states.FORMAT
    try:
        states.FORMAT = 2
        newer = states.encode(record, "me")
    finally:
        states.FORMAT = original
    with pytest.raises(RepositoryError, match="format 2"):
        decode(newer)
