"""Datastores are known by MoRef, or by datacenter and name: names repeat across datacenters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vrepl.errors import NotFoundError, UsageError
from vrepl.model import Datastore, Disk
from vrepl.planner.datastores import datastore_of_disk, find_datastore

EAST = Datastore("datastore-1", "gold", "VMFS", 100, 10, hosts=("esx-1",), datacenter="east")
WEST = Datastore("datastore-2", "gold", "VMFS", 900, 800, hosts=("esx-2", "esx-3"), datacenter="west")
ODD = Datastore("datastore-3", "a/b", "NFS", 1, 1, hosts=("esx-1",), datacenter="east")
STORES = [EAST, WEST, ODD]
DISK = Disk(2000, 0, "Hard disk 1", "[gold] a/a.vmdk", "[gold] a/a.vmdk", 1, "u", "gold")


@pytest.mark.parametrize(
    ("wanted", "host", "found"),
    [
        ("east/gold", None, EAST),
        ("west/gold", None, WEST),
        ("gold", "esx-1", EAST),
        ("gold", "esx-3", WEST),
        ("a/b", None, ODD),
        ("east/a/b", None, ODD),
    ],
)
def test_space_is_that_of_the_datastore_that_is_meant(wanted: str, host: str | None, found: Datastore) -> None:
    for stores in (STORES, STORES[::-1]):
        assert find_datastore(wanted, stores, site="dr", host=host) is found


def test_a_name_that_two_datacenters_have_is_asked_about() -> None:
    with pytest.raises(UsageError, match="2 datastores named gold: east/gold, west/gold") as caught:
        find_datastore("gold", STORES, site="dr")
    assert "target_host" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("wanted", "host", "says", "hint"),
    [
        ("gild", None, "site dr has no datastore gild", "gold"),
        ("silver-99", None, "site dr has no datastore", "its datastores are: a/b, gold"),
        ("gold", "esx-7", "host esx-7 has no datastore gold", "gold"),
        ("north/gold", None, "site dr has no datastore north/gold", "gold"),
    ],
)
def test_what_nothing_answers_to(wanted: str, host: str | None, says: str, hint: str) -> None:
    with pytest.raises(NotFoundError, match=says) as caught:
        find_datastore(wanted, STORES, site="dr", host=host)
    assert hint in (caught.value.hint or "")


def test_a_disk_lies_where_its_reference_says() -> None:
    assert datastore_of_disk(replace(DISK, datastore_ref="datastore-2"), STORES, datacenter="east") is WEST
    assert datastore_of_disk(replace(DISK, datastore_ref="datastore-9"), STORES) is None


def test_a_disk_that_is_known_by_name_is_where_its_vm_is_or_nowhere_sure() -> None:
    assert datastore_of_disk(DISK, STORES) is None
    assert datastore_of_disk(DISK, STORES, datacenter="west") is WEST
    assert datastore_of_disk(DISK, STORES, host="esx-1") is EAST
    assert datastore_of_disk(replace(DISK, datastore="west/gold"), STORES) is WEST
