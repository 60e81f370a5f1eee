"""Checks of a job's scripts (they are there, with logins, and may be run), and of what it says of guests' addresses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from vrepl.checks.facts import CheckedSite
from vrepl.checks.privileges import check_privileges
from vrepl.checks.result import CheckResult, Status
from vrepl.config.job import GuestTable
from vrepl.model import JobSettings, VirtualMachine
from vrepl.model.addresses import GuestFamily
from vrepl.planner.addresses import family_of, rules_for


def check_addresses(
    job: JobSettings, target: CheckedSite, sources: Sequence[VirtualMachine], replicas: Mapping[str, VirtualMachine]
) -> Iterator[CheckResult]:
    """Whether a failover could set guests' addresses as the job's rules say, as far as that is seen without asking."""
    rules = job.failover.addresses.rules
    if not rules:
        return
    meant = [vm for vm in sources if rules_for(rules, vm.name)]
    strange = [vm.name for vm in meant if not _is_customised(vm, job)]
    title = f"addresses of guests (job {job.name})"
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        yield CheckResult(
            title,
            Status.WARNING,
            f"vCenter would not set those of {', '.join(strange[:3])}{more}",
            "vrepl failover start --all --dry-run says why",
        )
    else:
        yield CheckResult.ok(title, f"rules for {len(meant)} VM{'s' if len(meant) != 1 else ''}")
    refs = [vm.ref for vm in replicas.values() if vm.name in {job.replica_name_of(one.name) for one in meant}]
    if refs:
        yield check_privileges(
            f"privileges for addresses of guests (job {job.name})", lambda: target.lacking_for_guest_addresses(refs)
        )


def _is_customised(vm: VirtualMachine, job: JobSettings) -> bool:
    family = family_of(vm.hardware.guest_id)
    return family is GuestFamily.LINUX or (family is GuestFamily.WINDOWS and job.failover.addresses.sysprep is not None)


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
