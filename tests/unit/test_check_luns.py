"""Promises of `vrepl check` about LUNs: each that a SAN proxy misses is named, and other proxies are left in peace."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from vrepl.checks.luns import check_luns
from vrepl.checks.result import Status
from vrepl.model import (
    Datastore,
    Disk,
    Hardware,
    JobSettings,
    PowerState,
    ReplicaPlacement,
    TransportMode,
    VirtualMachine,
)

JOB = JobSettings(
    "demo", "prod", "dr", ("web",), ReplicaPlacement(None, "dr-01"), source_proxies=("p",), target_proxies=("p",)
)
DISK = Disk(2000, 0, "Hard disk 1", "", "", 1 << 30, "", "prod-01")
VM = VirtualMachine(
    "vm-1", "web", "i", "b", PowerState.ON, "esx", "dc", "g", Hardware(19, "o", "efi", False, 1, 1, 512), (DISK,)
)


def site(*stores: Datastore) -> Any:
    return SimpleNamespace(datastores=lambda: list(stores))


def vmfs(name: str, *luns: str) -> Datastore:
    return Datastore("d", name, "VMFS", 1, 1, luns=luns)


PROD, DR = site(vmfs("prod-01", "naa.1", "naa.2"), vmfs("other", "naa.9")), site(vmfs("dr-01", "naa.3"))


@pytest.mark.parametrize(
    ("seen", "statuses", "words"),
    [
        ({"naa.1", "naa.2", "naa.3"}, [Status.OK, Status.OK], "sees all of them"),
        (set(), [Status.OK, Status.OK], "proxy p sees none of them"),
        ({"naa.1"}, [Status.WARNING, Status.OK], "proxy p does not see naa.2 behind prod-01"),
        ({"naa.9"}, [Status.WARNING, Status.OK], "proxy p does not see naa.1, naa.2 behind prod-01"),
    ],
)
def test_what_a_proxy_sees(seen: set[str], statuses: list[Status], words: str) -> None:
    world: Any = SimpleNamespace(visible_luns=lambda proxy: frozenset(seen))
    results = list(check_luns(world, JOB, PROD, DR, [VM]))
    assert [result.status for result in results] == statuses
    assert words in results[0].detail


def test_a_job_that_wants_san_alone_fails_without_the_lun() -> None:
    world: Any = SimpleNamespace(visible_luns=lambda proxy: frozenset())
    job = replace(JOB, source_modes=(TransportMode.SAN,), target_modes=(TransportMode.NBDSSL,))
    [result] = list(check_luns(world, job, PROD, DR, [VM]))
    assert result.status is Status.FAILED
    assert result.hint


def test_a_job_without_san_is_not_asked() -> None:
    world: Any = SimpleNamespace(visible_luns=lambda proxy: frozenset())
    job = replace(JOB, source_modes=(TransportMode.NBDSSL,), target_modes=(TransportMode.NBDSSL,))
    assert list(check_luns(world, job, PROD, DR, [VM])) == []
