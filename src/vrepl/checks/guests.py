"""Checks of a job's scripts: they are there, every guest has a login, and the site's user may run them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from vrepl.checks.facts import CheckedSite
from vrepl.checks.privileges import check_privileges
from vrepl.checks.result import CheckResult, Status
from vrepl.config.job import GuestTable
from vrepl.model import VirtualMachine


def check_guest_scripts(
    job: str, table: GuestTable, source: CheckedSite, vms: Sequence[VirtualMachine]
) -> Iterator[CheckResult]:
    """Nothing is run, and no password of a guest is read."""
    if not table.policy().has_scripts:
        return
    scripts = [path for path in (table.pre_freeze, table.post_thaw) if path is not None]
    wrong = [f"{path} cannot be read" for path in scripts if not (path.is_file() and os.access(path, os.R_OK))]
    commands = [words[0] for words in (table.host_pre_freeze, table.host_post_thaw) if words]
    wrong += [f"{command} is no command here" for command in commands if shutil.which(command) is None]
    strangers = [vm.name for vm in vms if not any(fnmatchcase(vm.name, pattern) for pattern in table.logins)]
    if scripts and strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        wrong.append(f"no login for the guests of {', '.join(strangers[:3])}{more}")
    title = f"scripts of job {job}"
    if wrong:
        yield CheckResult(title, Status.FAILED, "; ".join(wrong), f"see [jobs.{job}.guest]")
    else:
        yield CheckResult.ok(title, f"{len(scripts) + len(commands)} there")
    if scripts:
        yield check_privileges(
            f"privileges for scripts in guests (job {job})",
            lambda: source.lacking_for_guest_scripts([vm.ref for vm in vms]),
        )
