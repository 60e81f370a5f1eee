"""A job selects by tag among 300 VMs of a vCenter, in a number of calls that is known, and sees a new tag at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from tests.support.site_access import settings_of
from tests.support.vrepl_runs import Runs
from vrepl.config.load import parse_selection
from vrepl.planner.selection import choose
from vrepl.vsphere import collector
from vrepl.vsphere.retry import RetryPolicy
from vrepl.vsphere.site import VsphereSite
from vrepl_lab.lab import Lab
from vrepl_lab.spec import LabSpec, estate_spec


@contextmanager
def prod(lab: Lab) -> Iterator[VsphereSite]:
    retry = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=0.2)
    with VsphereSite(settings_of(lab, "prod", retry=retry)) as site:
        yield site


def calls_by_page(site: VsphereSite, page: int) -> int:
    """Calls of a whole listing, where a reply holds so many objects (1,000 at a vCenter)."""
    with mock.patch.object(collector, "PAGE", page):
        before = site.soap_calls
        site.candidates([])
        return site.soap_calls - before


@pytest.mark.slow
def test_three_hundred_vms(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    spec = estate_spec(300)
    runs = Runs(start_lab(spec), tmp_path)
    gold = {vm.name for vm in spec.prod.vms if "Backup/Gold" in vm.tags and "Environment/Test" not in vm.tags}
    assert 40 < len(gold) < 80
    wanted = parse_selection('tags = ["Backup/Gold"], exclude = { tags = ["Environment/Test"] }')
    with prod(runs.lab) as site:
        site.login()
        before = site.soap_calls
        found = choose(site.candidates(wanted.tag_patterns), [], wanted)
        assert {one.name for one in found.vms} == gold
        assert site.soap_calls - before <= 6, "one page of objects, and what a view takes"
        assert calls_by_page(site, 1000) == calls_by_page(site, 150) - 2, "each page more is one call more"
        where = next(one for one in found.vms)
        assert where.path.endswith(f"/{where.name}")
        assert where.pool
        assert where.attributes["Owner"] in {"Ada", "Grace", "Edsger"}
    listed = runs.json("vms", "prod", "--select", 'tags = ["Backup/*"], folders = ["*/web"]')
    below = {vm.name for vm in spec.prod.vms if any(tag.startswith("Backup/") for tag in vm.tags) and vm.vapp is None
             and str(vm.folder).startswith("web")}  # fmt: skip
    assert len(below) > 100
    assert below <= {vm["name"] for vm in listed["vms"]}
    assert {vm["name"] for vm in listed["vms"]} - below <= {vm.name for vm in spec.prod.vms if vm.vapp}
