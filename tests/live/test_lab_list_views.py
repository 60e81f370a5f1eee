"""A list of tasks that grows while somebody waits for news of it: the simulated vCenter answers both."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support import plain_api
from vrepl_lab.lab import Lab

THREADS = 6
CHANGES = 10
MANY = 400
"""So that the view is held for a moment."""


@pytest.mark.slow
def test_who_waits_for_updates_and_who_changes_the_view_do_not_wait_for_each_other(lab: Lab) -> None:
    with plain_api.session(lab) as instance:
        content = instance.content
        things = [content.rootFolder] * MANY
        view = content.viewManager.CreateListView()
        collector = filtered(content, view)
        changing = [threading.Thread(target=change, args=(view, things), daemon=True) for _ in range(THREADS)]
        waiting = threading.Thread(target=follow, args=(collector, changing), daemon=True)
        for thread in (*changing, waiting):
            thread.start()
        until = time.monotonic() + 30
        for thread in (*changing, waiting):
            thread.join(max(0.0, until - time.monotonic()))
            assert not thread.is_alive(), "it waits for ever"
        assert list(view.view or []) == []
        view.DestroyView()


def filtered(content: Any, view: Any) -> Any:
    query = vmodl.query.PropertyCollector
    collector = content.propertyCollector.CreatePropertyCollector()
    walk = query.TraversalSpec(name="all", path="view", skip=False, type=vim.view.ListView)
    start = query.ObjectSpec(obj=view, skip=True, selectSet=[walk])
    names = query.PropertySpec(type=vim.ManagedEntity, all=False, pathSet=["name"])
    collector.CreateFilter(spec=query.FilterSpec(objectSet=[start], propSet=[names]), partialUpdates=False)
    return collector


def change(view: Any, things: list[Any]) -> None:
    for _ in range(CHANGES):
        view.ModifyListView(add=things)
        view.ModifyListView(remove=things)


def follow(collector: Any, changing: list[threading.Thread]) -> None:
    options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=1)
    version = ""
    while True:
        news = collector.WaitForUpdatesEx(version=version, options=options)
        version = news.version if news is not None else version
        if not any(thread.is_alive() for thread in changing):
            return
