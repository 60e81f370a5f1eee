"""What must agree between tables: names that point at other tables, and replicas that would get into each other's way.

It reads the raw tables, leniently, so that these mistakes are reported together with those of single values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from vrepl.model.selection import is_pattern

DEFAULT_REPLICA_NAME = "{name}-replica"


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def reference_problems(raw: Mapping[str, Any]) -> list[str]:
    """Every mistake between tables, as `key path: what`."""
    sites, proxies, jobs, plans = (_tables(raw, key) for key in ("sites", "proxies", "jobs", "plans"))
    problems: list[str] = []
    for name, proxy in proxies.items():
        for site in _names(proxy.get("sites")):
            if site not in sites:
                problems.append(f'proxies.{name}.sites: there is no site "{site}"{near(site, sites)}')
    for name, job in jobs.items():
        for side in ("source", "target"):
            wanted = job.get(side)
            if isinstance(wanted, str) and wanted and wanted not in sites:
                problems.append(f'jobs.{name}.{side}: there is no site "{wanted}"{near(wanted, sites)}')
        problems += _proxy_problems(f"jobs.{name}.proxy", job, sites, proxies)
    problems += _replica_problems(jobs)
    for name, plan in plans.items():
        problems += _plan_problems(f"plans.{name}", plan, jobs)
    return problems


def _proxy_problems(
    path: str, job: Mapping[str, Any], sites: Mapping[str, Any], proxies: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What a job names as its proxy, or as its two: there, and serving the sites that it is to serve."""
    value = job.get("proxy")
    named = value if isinstance(value, Mapping) else {"source": value, "target": value}
    sides = {side: [one] if isinstance(one := named.get(side), str) else _names(one) for side in ("source", "target")}
    problems = []
    for side, proxy in ((side, proxy) for side, names in sides.items() for proxy in names):
        if proxy not in proxies:
            problems.append(f'{path}: there is no proxy "{proxy}"{near(proxy, proxies)}')
            continue
        serves = _names(proxies[proxy].get("sites"))
        if serves and job.get(side) in sites and job[side] not in serves:
            problems.append(f'{path}: "{proxy}" does not serve site "{job[side]}"')
    if job.get("source") == job.get("target") and sides["source"] != sides["target"]:
        problems.append(f"{path}: source and target are one site, which takes one proxy")
    return list(dict.fromkeys(problems))


def _replica_problems(jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Replicas that would overwrite each other or stand where a source VM stands."""
    problems: list[str] = []
    replica_of: dict[tuple[str, str], tuple[str, str, str]] = {}
    target_of: dict[tuple[str, str], tuple[str, str, str]] = {}
    for name, job in jobs.items():
        source, target, pattern = job.get("source"), job.get("target"), job.get("replica_name", DEFAULT_REPLICA_NAME)
        if not (isinstance(source, str) and isinstance(target, str) and isinstance(pattern, str)):
            continue
        named = _names(job.get("vms"))
        vms = [vm for vm in named if not is_pattern(vm)]
        several = "select" in job or len(vms) < len(named)
        if "{name}" not in pattern and (several or len(vms) > 1):
            many = "several" if several else str(len(vms))
            problems.append(f'jobs.{name}.replica_name: needs "{{name}}", as the job has {many} VMs')
            continue
        for vm in dict.fromkeys(vms):
            replica = pattern.replace("{name}", vm).replace("{job}", name)
            if source == target and replica in vms:
                problems.append(
                    f'jobs.{name}.replica_name: on site "{target}" the replica of "{vm}" would be named '
                    f'"{replica}" like a source VM'
                )
            other = replica_of.setdefault((target, replica), (name, source, vm))
            if other[1:] != (source, vm):
                problems.append(
                    f'jobs.{name}.replica_name: "{vm}" and "{other[2]}" (job {other[0]}) would both have the '
                    f'replica "{replica}" on site "{target}"'
                )
            before = target_of.setdefault((source, vm), (name, target, replica))
            if before[1:] != (target, replica):
                problems.append(
                    f'jobs.{name}.vms: "{vm}" is replicated by job "{before[0]}" already, as "{before[2]}" on site '
                    f'"{before[1]}"; a second replica takes a configuration with a repository of its own'
                )
    return problems


def _plan_problems(path: str, plan: Mapping[str, Any], jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """VMs that no job replicates, or that have their replicas at several sites. Without any job nobody knows."""
    groups = plan.get("groups")
    if not jobs or not isinstance(groups, list):
        return []
    problems: list[str] = []
    sites: dict[str, str] = {}
    for number, group in enumerate(groups):
        vms = group.get("vms") if isinstance(group, Mapping) else None
        for vm in vms if isinstance(vms, list) else []:
            name = vm.get("name") if isinstance(vm, Mapping) else vm
            if not isinstance(name, str) or is_pattern(name):
                continue
            targets = {str(job.get("target")) for job in jobs.values() if _may_mean(job, name)}
            if not targets:
                known = [one for job in jobs.values() for one in _names(job.get("vms"))]
                problems.append(f'{path}.groups.{number}.vms: no job replicates "{name}"{near(name, known)}')
            elif len(targets) == 1:
                sites.setdefault(targets.pop(), name)
    if len(sites) > 1:
        where = ", ".join(f'"{name}" at {site}' for site, name in sites.items())
        problems.append(f"{path}: the replicas of one plan are at one site; here are {where}")
    return problems


def _may_mean(job: Mapping[str, Any], name: str) -> bool:
    """As `JobSettings.may_mean`: a job that selects VMs by what they are may mean any."""
    select = job.get("select")
    selects = isinstance(select, Mapping) and any(key != "exclude" for key in select)
    return selects or any(fnmatchcase(name, one) or name == one for one in _names(job.get("vms")))


def _tables(raw: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    value = raw.get(key)
    if not isinstance(value, Mapping):
        return {}
    return {name: table for name, table in value.items() if isinstance(table, Mapping)}


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
