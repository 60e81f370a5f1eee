"""One site of a lab is lost, the other goes on; and what a session's cookie looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import plain_api
from vrepl_lab.errors import LabError
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec


def test_one_site_is_lost_and_the_other_serves_on(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    lab = start_lab(LabSpec.of_vms(VmSpec("web-01", disks=(DiskSpec(MIB, content="random"),))))
    with plain_api.session(lab, "dr") as api:
        cookie = api._stub.cookie
        assert cookie.startswith('vmware_soap_session="')  # in quotes, as vCenter sends it
        assert api.CurrentTime() is not None
    assert lab.stop_site("prod")
    assert not lab.stop_site("prod")
    found = Lab.attach(lab.folder)
    assert set(found.status()) == {"dr"}
    found.set("boot_ms=1")
    with pytest.raises(LabError, match="no site prod"):
        found.set("prod.boot_ms=1")
    with pytest.raises(LabError, match="does not answer"):
        found.export("prod", "web-01", 0, tmp_path / "out.img")
    with plain_api.session(lab, "dr") as api:
        assert plain_api.vm_named(api, "vrepl-proxy")
    assert json.loads((lab.folder / "lab.json").read_text())["sites"].keys() == {"prod", "dr"}
    assert found.stop() == ["dr"]
    with pytest.raises(LabError, match="no lab is running"):
        Lab.attach(lab.folder)
