"""Promises of admission over a whole site's night, by one run and by runs that share the limits. Time is simulated."""

from __future__ import annotations

import pytest

from tests.support.night_of_a_site import Night, Size, lower_bound, vms

WANTED = 1.15
SLICE = Size(vms=400, proxies=20, source_hosts=30, target_hosts=20, regions=2, vcenters=3, datastores=40)


@pytest.mark.parametrize("size", [SLICE, pytest.param(Size(), marks=pytest.mark.long)], ids=["slice", "whole"])
@pytest.mark.parametrize("runs", [1, 2, pytest.param(3, marks=pytest.mark.long)])
def test_a_site_is_done_near_the_bound_and_no_limit_is_passed_however_many_runs_share_it(size: Size, runs: int) -> None:
    site = list(vms(size))
    night = Night(*(site[run::runs] for run in range(runs)))
    makespan = night.run()
    assert night.broken == []
    assert night.disks_started == sum(len(vm.disks) for vm in site)
    bound, _ = lower_bound(site)
    assert bound <= makespan <= WANTED * bound


@pytest.mark.parametrize(("size", "small"), [(SLICE, 20), pytest.param(Size(), 100, marks=pytest.mark.long)])
def test_a_small_run_does_not_wait_for_a_large_ones_end(size: Size, small: int) -> None:
    site = list(vms(size))
    night = Night(site[small:], site[:small])
    makespan = night.run()
    assert night.broken == []
    bound, _ = lower_bound(site[:small])
    assert night.ended[1] <= WANTED * bound < makespan
