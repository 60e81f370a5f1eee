"""vCenter's tags, which only its REST interface knows: who bears which tag.

vSphere Automation API, `com.vmware.cis.tagging` at `/rest`: categories, the tags of a category, and what a list of tags
is attached to. A session of its own is opened with the user's password and closed again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from vrepl.errors import PermissionDeniedError, VsphereError
from vrepl.vsphere.session import Session

BASE = "/rest/com/vmware/cis"
LARGEST = 64 << 20
"""Bytes of an answer: 100,000 attachments take about 6 MiB."""


class Tags:
    """Asks one vCenter."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def attached(self, patterns: Iterable[str]) -> dict[str, list[str]]:
        """MoRef of a VM -> the tags (`Category/Tag`) on it that answer to one of the patterns.

        Takes four calls, one for each category that a pattern may mean, and one for each of those categories' tags.
        Raises PermissionDeniedError, VsphereError where this is no vCenter.
        """
        if not self._session.is_vcenter:
            raise VsphereError(
                f"site {self._session.settings.name} is a standalone ESXi host, which knows no tags",
                fault="NotSupported",
                hint="select by name, pool or datastore there",
            )
        wanted = list(patterns)
        headers = self._open()
        try:
            tags = self._tags(headers, wanted)
            if not tags:
                return {}
            found = self._ask(headers, "POST", "/tagging/tag-association?~action=list-attached-objects-on-tags",
                              {"tag_ids": list(tags)})  # fmt: skip
        finally:
            self._session.exchange("DELETE", f"{BASE}/session", what="end the REST session", headers=headers)
        by_vm: dict[str, list[str]] = {}
        for attachment in found:
            for thing in attachment.get("object_ids") or ():
                if thing.get("type") == "VirtualMachine":
                    by_vm.setdefault(str(thing["id"]), []).append(tags[str(attachment["tag_id"])])
        return by_vm

    def _tags(self, headers: Mapping[str, str], wanted: list[str]) -> dict[str, str]:
        """ID -> `Category/Tag`, of those that answer to a pattern."""
        found: dict[str, str] = {}
        categories = [pattern.partition("/")[0] for pattern in wanted]
        for category_id in self._ask(headers, "GET", "/tagging/category"):
            category = str(self._ask(headers, "GET", f"/tagging/category/id:{category_id}")["name"])
            if not any(fnmatchcase(category, pattern) for pattern in categories):
                continue
            for tag_id in self._ask(headers, "POST", f"/tagging/tag/id:{category_id}?~action=list-tags-for-category"):
                name = f"{category}/{self._ask(headers, 'GET', f'/tagging/tag/id:{tag_id}')['name']}"
                if any(fnmatchcase(name, pattern) for pattern in wanted):
                    found[str(tag_id)] = name
        return found

    def _open(self) -> dict[str, str]:
        """The headers of a new session."""
        settings = self._session.settings
        login = base64.b64encode(f"{settings.user}:{settings.password}".encode()).decode()
        token = self._ask({"Authorization": f"Basic {login}"}, "POST", "/session")
        return {"vmware-api-session-id": str(token)}

    def _ask(self, headers: Mapping[str, str], method: str, path: str, body: object = None) -> Any:
        what = f"{method} {path.partition('?')[0]} of the tags"
        sent = {**headers, "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        status, answer = self._session.exchange(
            method, f"{BASE}{path}", content, what=what, limit=LARGEST, headers=sent
        )
        if status in {401, 403}:
            raise PermissionDeniedError(
                f"{what}: refused (HTTP {status})",
                hint="the user may not read tags: it needs to log in to vCenter's REST",
            )
        try:
            if status not in {200, 201}:
                raise ValueError(f"HTTP {status}")
            return json.loads(answer)["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise VsphereError(
                f"{what}: no answer that can be read ({error})", hint="is it a vCenter 6.5 or newer?"
            ) from error
