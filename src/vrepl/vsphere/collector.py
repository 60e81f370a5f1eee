"""The property collector: explicit paths, pages of 1,000 objects, never a call per object."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from vrepl.errors import TransientVsphereError, VreplError
from vrepl.vsphere.api import ref_of, vim, vmodl
from vrepl.vsphere.faults import fault_name
from vrepl.vsphere.session import Session

log = logging.getLogger(__name__)

PAGE = 1000
"""Objects per reply: vCenter's own upper limit."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """One object and those of the asked properties that are set and readable."""

    object: Any
    values: Mapping[str, Any]

    @property
    def ref(self) -> str:
        return ref_of(self.object)

    def get(self, path: str, default: Any = None) -> Any:
        value = self.values.get(path)
        return default if value is None else value


def below(session: Session, wanted: Mapping[Any, Sequence[str]], root: Any = None) -> list[Found]:
    """Every object of the wanted types under `root` (default: the whole site), with the paths asked for per type."""

    def collect() -> list[Found]:
        content = session.content
        view = content.viewManager.CreateContainerView(
            container=root or content.rootFolder, type=list(wanted), recursive=True
        )
        try:
            walk = _query().TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
            start = _query().ObjectSpec(obj=view, skip=True, selectSet=[walk])
            return _retrieve(session, [start], wanted)
        finally:
            quietly(view.DestroyView)

    return _within_one_login(session, collect)


def these(session: Session, objects: Sequence[Any], wanted: Mapping[Any, Sequence[str]]) -> list[Found]:
    """The given objects, in vSphere's order; those that no longer exist are left out."""
    if not objects:
        return []
    starts = [_query().ObjectSpec(obj=one, skip=False) for one in objects]
    return _within_one_login(session, lambda: _retrieve(session, starts, wanted))


def along(
    session: Session, start: Any, path: str, wanted: Mapping[Any, Sequence[str]], *, beside: Sequence[Any] = ()
) -> list[Found]:
    """One object and what its property `path` refers to, and `beside` it other objects, in one call."""
    step = _query().TraversalSpec(name="step", path=path, skip=False, type=type(start))
    spec = _query().ObjectSpec(obj=start, skip=False, selectSet=[step])
    others = [_query().ObjectSpec(obj=one, skip=False) for one in beside]
    return _within_one_login(session, lambda: _retrieve(session, [spec, *others], wanted))


@lru_cache(maxsize=64)
def property_specs(wanted: tuple[tuple[Any, tuple[str, ...]], ...]) -> list[Any]:
    """Made once for what is asked again and again: `vsphere.stub` knows them by that, and writes them once."""
    return [_query().PropertySpec(type=kind, all=False, pathSet=list(paths)) for kind, paths in wanted]


def _query() -> Any:
    return vmodl.query.PropertyCollector


def _retrieve(session: Session, starts: Sequence[Any], wanted: Mapping[Any, Sequence[str]]) -> list[Found]:
    collector = session.content.propertyCollector
    generation = session.generation
    spec = _query().FilterSpec(
        objectSet=list(starts),
        propSet=property_specs(tuple((kind, tuple(paths)) for kind, paths in wanted.items())),
        reportMissingObjectsInResults=True,
    )
    page = collector.RetrievePropertiesEx(specSet=[spec], options=_query().RetrieveOptions(maxObjects=PAGE))
    found: list[Found] = []
    refused = False
    while page is not None:
        for item in page.objects:
            found.append(Found(item.obj, {prop.name: prop.val for prop in item.propSet}))
            for missing in item.missingSet:
                refused = refused or fault_name(missing.fault) == "NotAuthenticated"
                log.debug("%s: %s cannot be read: %s", ref_of(item.obj), missing.path, fault_name(missing.fault))
        page = collector.ContinueRetrievePropertiesEx(token=page.token) if page.token else None
    # A session that has timed out gets empty answers, or properties that are missing, instead of a fault: nothing may
    # be taken for gone because of that.
    if (refused or not found) and session.revive(generation):
        raise TransientVsphereError("the session ended while properties were read", fault="NotAuthenticated")
    return found


def _within_one_login(session: Session, action: Callable[[], T]) -> T:
    """Views and page tokens die with the login that made them: after a new login, start over."""
    for _ in range(3):
        _ = session.content
        generation = session.generation
        try:
            return action()
        except VreplError:
            if session.generation == generation or session.closed:
                raise
    return action()


def quietly(action: Callable[[], None]) -> None:
    """For what is only tidy: its failure is worth a line in the debug log."""
    try:
        action()
    except VreplError as error:
        log.debug("%s", error)
