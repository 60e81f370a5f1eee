"""Tests of a replica's failover: what is asked, what stands now, and how the last one went.

A test is no state of the replica: it stays `ready`, and runs go on. So this lies beside the replica's state, not in it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field

from vrepl.model.plans import Gate, HeartbeatGate


@dataclass(frozen=True, slots=True)
class TestWish:
    """What a test shall show."""

    __test__ = False
    """No test case, whatever its name begins with."""
    restore_point: str | None = None
    """ID; None: the newest."""
    network: str | None = None
    """All adapters are connected to it; None: to one that leads nowhere, made for this test."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """Network of the replica -> network of the clone; goes before `network`."""
    checks: tuple[Gate, ...] = (HeartbeatGate(),)
    """All must pass, each within its time from power-on."""
    keep: bool = False
    """The clone stays, to be looked at."""


@dataclass(frozen=True, slots=True)
class StandingTest:
    """A test that stands on a restore point, or is about to: written before there is a clone."""

    id: str
    restore_point: str
    snapshot_ref: str
    """Of the restore point."""
    owner: str
    """The process that tests; whether it still lives can be told on its own machine only."""
    until: dt.datetime
    """By the target's clock: when the test has ended, unless it is kept."""
    kept: bool = False
    network: str | None = None
    """Name of the network that was made for it."""
    host: str = ""
    """Where that was made."""


@dataclass(frozen=True, slots=True)
class FailoverTest:
    """A test that has ended."""

    time: dt.datetime
    """By the target's clock."""
    restore_point: str
    passed: bool
    seconds: float | None
    """From power-on until every check had passed; None where one never did."""
    reason: str = ""
    """Of a failure."""


@dataclass(frozen=True, slots=True)
class ReplicaTests:
    """All that is known of one replica's tests: beside the replica, and in the repository."""

    replica_instance_uuid: str
    standing: StandingTest | None = None
    last: FailoverTest | None = None


@dataclass(frozen=True, slots=True)
class SnapshotRemoval:
    """A restore point's snapshot that is about to be removed: written before looking whether a test stands on it."""

    replica_instance_uuid: str
    snapshot_ref: str | None
    """None: none is any more."""
    time: dt.datetime
    """By the target's clock."""
