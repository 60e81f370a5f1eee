"""A replicated VM whose repository is damaged, and whose restore points are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.world import World, source
from vrepl.extents import GRAIN
from vrepl.report.model import Result
from vrepl.report.verification import VerifyReport
from vrepl.repository.check import Severity, check
from vrepl.repository.commit_record import read_mark
from vrepl.repository.documents import with_checksum
from vrepl.repository.rebuild import FoundReplica, Rebuilt, rebuild
from vrepl.repository.store import Repository

Content = dict[str, Any]


@dataclass
class Replicated:
    world: World
    original: dict[str, list[bytes]]
    """What each restore point held when it was sealed."""

    def run(self, **how: Any) -> Any:
        return self.world.run_vm(**how)

    def change(self, seed: int) -> None:
        """Something that the next run has to bring over, on both disks, beside what earlier ones brought."""
        vm = source(self.world)
        for index in (0, 1):
            self.world.source.guest_write(vm, index, (seed % 6) * GRAIN, bytes([seed]) * GRAIN)

    def points_are_right(self) -> None:
        """Every restore point that is sealed holds what it held, and a new one what the source holds now."""
        contents = self.world.restore_point_contents()
        for name, disks in contents.items():
            if name not in self.original:
                self.original[name] = [disk.disk.content() for disk in source(self.world).disks]
            assert disks == self.original[name], name

    def document(self, pattern: str) -> Path:
        [folder] = (self.world.folder / "replicas").iterdir()
        return sorted(folder.glob(pattern))[-1]

    def damage(self, pattern: str, how: Callable[[Content], None], *, checksum: bool) -> Path:
        path = self.document(pattern)
        content = json.loads(path.read_text())
        before = json.dumps(content)
        how(content)
        assert json.dumps(content) != before
        path.write_text(json.dumps(with_checksum(content) if checksum else content))
        return path

    def verification(self) -> VerifyReport:
        return self.world.engine().verify(Repository.open(self.world.folder).replicas())

    def verify(self) -> list[Result]:
        return [vm.result for vm in self.verification().vms]

    def errors(self) -> list[str]:
        """What `repository check` calls an error."""
        findings = check(Repository.open(self.world.folder))
        return [one.path for one in findings if one.severity is Severity.ERROR]

    def rebuild(self) -> list[Rebuilt]:
        vms = [FoundReplica("dr", vm) for vm in self.world.target.list_vms() if read_mark(vm.extra_config)]
        return rebuild(Repository.open(self.world.folder, mend=True), vms)
