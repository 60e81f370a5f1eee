"""The vSphere roles that a site's user needs for the configured jobs, and the commands that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vrepl.config.model import Config
from vrepl.model import DataEngine, TransportMode
from vrepl.vsphere.privileges import NEEDS, Need, Role, Scope

EVERY_ENGINE = frozenset(DataEngine)


@dataclass(frozen=True, slots=True)
class SiteRole:
    """One role of vSphere, to be made and assigned to the site's user."""

    name: str
    uses: tuple[Role, ...]
    """What it is for."""
    where: str
    """Where to assign it, in words."""
    on_proxy: bool = False
    engines: frozenset[DataEngine] = EVERY_ENGINE
    """Whose code may open disks: what only another one wants is left out."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """Each privilege once for each kind of object, sorted."""
        found: dict[tuple[str, Scope], list[str]] = {}
        for use in self.uses:
            for need in NEEDS[use]:
                if need.engine is not None and need.engine not in self.engines:
                    continue
                whys = found.setdefault((need.privilege, need.scope), [])
                if need.why not in whys:
                    whys.append(need.why)
        return tuple(Need(privilege, scope, "; ".join(whys)) for (privilege, scope), whys in sorted(found.items()))

    @property
    def privileges(self) -> tuple[str, ...]:
        """Sorted; without those of System, which vSphere gives every role (vSphere Security, Using Roles)."""
        return tuple(sorted({need.privilege for need in self.needs if not need.privilege.startswith("System.")}))


def engines_of(config: Config) -> frozenset[DataEngine]:
    """Whose code may open disks by the configuration; `auto` may become either, at each machine."""
    chosen = {config.vddk.engine, *(proxy.engine for proxy in config.proxies.values())} - {None}
    return EVERY_ENGINE if "auto" in chosen else frozenset(DataEngine(name) for name in chosen if name is not None)


def roles_of(
    config: Config, site: str, *, failback: bool, engines: frozenset[DataEngine] = EVERY_ENGINE
) -> list[SiteRole]:
    """What the jobs make of a site; one that no job names is taken to be both ends.

    A user has one permission on an object, and what is assigned on an object replaces what it inherits: so what a site
    is all for is one role, and the proxy's holds it too. `failback`: either end may have to be the other's.
    `engines`: as `engines_of` says, or more.
    """
    jobs = [job for job in config.jobs.values() if site in {job.source, job.target}]
    reads = failback or not jobs or any(job.source == site for job in jobs)
    writes = failback or not jobs or any(job.target == site for job in jobs)
    uses = []
    if reads:
        uses.append(Role.SOURCE)
    if writes:
        uses += [Role.TARGET, Role.FAILOVER]
    if any(job.source == site and (job.guest.pre_freeze or job.guest.post_thaw) for job in jobs):
        uses.append(Role.GUEST_SCRIPTS)
    if any(job.failover.addresses and (failback or job.target == site) for job in jobs):
        uses.append(Role.GUEST_ADDRESSES)
    ends = "-".join(name for name, wanted in (("source", reads), ("target", writes)) if wanted)
    root = "the root of the vCenter, with propagation (or narrower: see docs/privileges.md)"
    found = [SiteRole(f"vrepl-{ends}", tuple(uses), root, engines=engines)]
    modes = {
        mode
        for job in jobs
        for end, wanted in ((job.source, job.transport.source), (job.target, job.transport.target))
        if end == site
        for mode in wanted
    }
    if not jobs or TransportMode.HOTADD in modes:
        where = "the VM that runs vrepl, where it is a VM of this site (HotAdd)"
        proxy_uses = (*uses, Role.HOTADD_PROXY)
        found.append(SiteRole(f"vrepl-{ends}-proxy", proxy_uses, where, on_proxy=True, engines=engines))
    return found


def _govc(role: SiteRole, user: str) -> list[str]:
    path = "/DATACENTER/vm/PROXY" if role.on_proxy else "/"
    return [
        " \\\n  ".join([f"govc role.create {role.name}", *role.privileges]),
        f"govc permissions.set -principal {_sh(user)} -role {role.name} -propagate=true {path}",
    ]


def _powercli(role: SiteRole, user: str) -> list[str]:
    identifiers = ",\n  ".join(f"'{privilege}'" for privilege in role.privileges)
    entity = "(Get-VM -Name 'PROXY')" if role.on_proxy else "(Get-Folder -NoRecursion)"
    principal = user.replace("'", "''")
    return [
        f"New-VIRole -Name '{role.name}' -Privilege (Get-VIPrivilege -Id @(\n  {identifiers}))",
        f"New-VIPermission -Entity {entity} -Principal '{principal}' -Role '{role.name}' -Propagate:$true",
    ]


def _list(role: SiteRole, user: str) -> list[str]:
    del user
    width = max(len(need.privilege) for need in role.needs)
    return [f"{need.privilege:{width}}  {need.scope:12}  {need.why}" for need in role.needs]


def _sh(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


FORMS: Mapping[str, Callable[[SiteRole, str], list[str]]] = {"list": _list, "govc": _govc, "powercli": _powercli}


def in_form(form: str, roles: list[SiteRole], user: str) -> str:
    """`form`: one of FORMS; `user`: the site's, who is to hold the roles."""
    return "\n\n".join("\n".join([f"# {role.name}: on {role.where}", *FORMS[form](role, user)]) for role in roles)


def to_json(role: SiteRole) -> dict[str, object]:
    return {
        "name": role.name,
        "for": [use.value for use in role.uses],
        "where": role.where,
        "privileges": list(role.privileges),
        "needs": [{"privilege": need.privilege, "on": need.scope.value, "why": need.why} for need in role.needs],
    }
