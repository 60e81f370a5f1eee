"""`Engine`: plans and runs jobs over their VMs. The only place that orders side effects is this package."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from vrepl.engine.clocks import refuse_wrong_clock
from vrepl.engine.context import ReplicationContext, Services, VerificationContext, timestamped_id
from vrepl.engine.gate import Gate, vms_at_once
from vrepl.engine.job_vms import JobVms, find_job_vms, new_and_vanished
from vrepl.engine.knowledge import TargetNames
from vrepl.engine.planning import look_and_plan
from vrepl.engine.preflight import refuse_impossible, settled
from vrepl.engine.recovery import Original, recover
from vrepl.engine.reporting import planned_vm_report
from vrepl.engine.source_verification import verify_against_source
from vrepl.engine.target_datastores import TargetDatastores
from vrepl.engine.verification import verify_replica
from vrepl.engine.vm_run import VmRun
from vrepl.errors import InterruptedRunError, LockedError, NotFoundError, RepositoryError, VreplError
from vrepl.model import DEFAULT_MODES, Datastore, JobSettings, ListedVm, TransferLimits
from vrepl.planner.vm import VmPlan
from vrepl.ports import Site
from vrepl.report import format as words
from vrepl.report.model import ErrorReport, Result, RunReport, VmReport
from vrepl.report.verification import VerifyReport
from vrepl.repository.replica_folder import ReplicaFolder

logger = logging.getLogger(__name__)

NO_REPLICA_MAP: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class Engine:
    """Takes everything it needs of the world as arguments, so that a test can give it a small one."""

    services: Services
    sites: Callable[[str], Site]
    """Site by configured name; logs in on first use."""

    def stop(self) -> None:
        """Ask everything that runs to end soon, leaving the sites clean; from any thread or a signal handler."""
        self.services.stop.set()
        self.services.movers.stop()

    # -- plan ---------------------------------------------------------------------------------------------------------

    def plan(
        self, job: JobSettings, vm_names: Sequence[str] = (), *, replica_map: Mapping[str, str] = NO_REPLICA_MAP
    ) -> RunReport:
        """What `replicate` would do, without doing anything."""
        context = self._replication(job, run_id="")
        source, target = context.source, context.target
        report = RunReport(job=job.name)
        names = TargetNames(target)
        vms = find_job_vms(source, job, vm_names)
        self._tell_drift(report, vms, job, whole=not vm_names)
        datastores = target.datastores()
        read = {vm.ref: vm for vm in source.read_vms([one.ref for one in vms.found])}
        for vm in [read[one.ref] for one in vms.found if one.ref in read]:
            try:
                folder = self.services.repository.replica(source.name, vm.instance_uuid)
                plan, _ = look_and_plan(context, folder, vm, names, replica_map.get(vm.name))
            except RepositoryError as error:
                # What is wrong with one VM's documents is no reason to say nothing of the others.
                report.vms.append(VmReport(name=vm.name, result=Result.FAILED, error=ErrorReport.of(error)))
                continue
            report.vms.append(_planned(context, plan, datastores))
        report.vms.extend(vms.missing)
        report.soap_calls = {source.name: source.soap_calls, target.name: target.soap_calls}
        return report

    # -- replicate ----------------------------------------------------------------------------------------------------

    def replicate(
        self,
        job: JobSettings,
        vm_names: Sequence[str] = (),
        *,
        lock_wait: float = 0.0,
        replica_map: Mapping[str, str] = NO_REPLICA_MAP,
    ) -> RunReport:
        """Run the job. Raises LockedError if another run of it goes on after `lock_wait` seconds.

        So long each VM waits too for whoever holds its replica.
        `replica_map`: source VM name -> name of an existing VM of the target that shall become its replica.
        """
        services = self.services
        services.repository.check_writable()
        with self._job_lock(job.name, lock_wait):
            if services.repository.upgrade():
                services.events.note("", f"the repository {services.repository.path} has today's format from now on")
            context = self._replication(job, run_id=timestamped_id(services.clock(), services.new_id()))
            sites = (context.source, context.target)
            calls_before = {site.name: site.soap_calls for site in sites}
            refuse_wrong_clock(services.clock, sites, lambda message: services.events.note("", message))
            report = RunReport(job=job.name, id=context.run_id, started=services.clock())
            vms = find_job_vms(context.source, job, vm_names)
            names = TargetNames(context.target)
            services.events.run_started(context.run_id, job.name, [vm.name for vm in vms.found])
            report.vms.extend(vms.missing)
            for vm in vms.missing:
                services.events.vm_finished(vm)
            self._tell_drift(report, vms, job, whole=not vm_names)
            self._recover_dropped(context, vms, whole=not vm_names)
            report.vms.extend(self._run_all(context, vms.found, names, replica_map, lock_wait))
            report.finished = services.clock()
            report.interrupted = services.stop.is_set()
            report.soap_calls = {site.name: site.soap_calls - calls_before[site.name] for site in sites}
            self._save(context.run_id, report)
            return report

    # -- verify -------------------------------------------------------------------------------------------------------

    def verify(
        self,
        folders: Sequence[ReplicaFolder],
        *,
        restore_point_id: str | None = None,
        jobs: Mapping[str, JobSettings] | None = None,
    ) -> VerifyReport:
        """Read a restore point of each of these replicas back (the newest, or the one named) against its digests.

        `jobs` by name say which transport modes a replica's job allows; a replica whose job is gone gets the defaults.
        """
        services = self.services
        started = services.clock()
        report = VerifyReport(started=started, finished=started)
        for folder in folders:
            context = self._verification(folder.record.target_site, (jobs or {}).get(folder.record.job))
            report.vms.append(verify_replica(context, folder, restore_point_id))
            if services.stop.is_set():
                break
        report.finished = services.clock()
        report.interrupted = services.stop.is_set()
        return report

    def verify_source(self, folder: ReplicaFolder, job: JobSettings, *, sample: float = 1.0) -> VerifyReport:
        """Read what change tracking calls unchanged at the source, or a share of it, and compare with the digests.

        `job`: the replica's own. Raises NotFoundError where the source is gone.
        """
        services = self.services
        started = services.clock()
        context = self._replication(job, run_id=timestamped_id(started, services.new_id()))
        vm = context.source.find_vm_by_instance_uuid(folder.record.source_instance_uuid)
        if vm is None:
            raise NotFoundError(f"the source {folder.record.source_name} is gone from site {context.source.name}")
        report = VerifyReport(started=started, finished=started)
        report.vms.append(verify_against_source(context, folder, vm, sample))
        report.finished = services.clock()
        report.interrupted = services.stop.is_set()
        return report

    def _run_all(
        self,
        context: ReplicationContext,
        vms: Sequence[ListedVm],
        names: TargetNames,
        replica_map: Mapping[str, str],
        lock_wait: float,
    ) -> list[VmReport]:
        def run_one(vm: ListedVm) -> VmReport:
            report = VmRun(context, vm, names, map_to=replica_map.get(vm.name), lock_wait=lock_wait).run()
            self.services.events.vm_finished(report)
            return report

        at_once = context.job.parallel_vms or vms_at_once(vms, context.job.limits)
        with ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="vm") as pool:
            return list(pool.map(run_one, vms))

    def _tell_drift(self, report: RunReport, vms: JobVms, job: JobSettings, *, whole: bool) -> None:
        """What is new in the job, and what it no longer means; only where all of it was looked up."""
        if not whole:
            return
        records = [folder.record for folder in self.services.repository.replicas(lambda _: None)]
        report.new_vms, report.vanished_vms = new_and_vanished(vms, job, records)
        for pattern in vms.idle:
            self.services.events.note("", f"job {job.name}: {pattern} matches no VM")

    def _recover_dropped(self, context: ReplicationContext, vms: JobVms, *, whole: bool) -> None:
        """Clean up after runs that died over VMs that have left the job since: none of its runs would ever again.

        `whole`: `vms` are all that the job means now.
        """
        job = context.job
        meant = {vm.instance_uuid for vm in vms.found}

        def damaged(error: VreplError) -> None:
            self.services.events.note("", f"an unfinished run cannot be judged: {error.message}")

        for folder in self.services.repository.unfinished(damaged):
            record = folder.record
            if (record.job, record.source_site, record.target_site) != (job.name, job.source, job.target):
                continue
            if record.source_instance_uuid in meant or self.services.stop.is_set():
                continue
            if record.source_name in job.vms or (not whole and job.may_mean(record.source_name)):
                continue
            try:
                vm = context.source.find_vm_by_instance_uuid(record.source_instance_uuid)
                if vm is None or vm.name in job.vms:
                    continue
                with folder.lock():
                    for note in recover(self.services, folder, context.target, Original(context.source, vm)):
                        self.services.events.note(vm.name, f"no longer in job {job.name}: {note}")
            except (LockedError, InterruptedRunError):  # another run does it; or this one ends, and says so
                continue
            except VreplError as error:
                self.services.events.note(
                    record.source_name,
                    f"no longer in job {job.name}, and what its unfinished run left cannot be cleaned up: {error}",
                )

    @contextmanager
    def _job_lock(self, job: str, wait_seconds: float) -> Iterator[None]:
        """Says that it waits for another run, and stops waiting when asked to."""

        def pause(seconds: float) -> None:
            if self.services.stop.wait(seconds):
                raise InterruptedRunError(f"stopped while waiting for another run of job {job}")

        with ExitStack() as held:
            try:
                held.enter_context(self.services.repository.job_lock(job))
            except LockedError as error:
                if wait_seconds <= 0:
                    raise
                patience = words.duration(wait_seconds)
                self.services.events.note("", f"{error.message}; waiting up to {patience} for that to end")
                held.enter_context(self.services.repository.job_lock(job, wait_seconds, sleep=pause))
            yield

    def _save(self, run_id: str, report: RunReport) -> None:
        try:
            self.services.repository.save_run(run_id, report.to_json())
        except VreplError as error:
            logger.warning("the report of run %s could not be kept: %s", run_id, error)

    def _replication(self, job: JobSettings, run_id: str) -> ReplicationContext:
        source, target = self.sites(job.source), self.sites(job.target)
        return ReplicationContext(
            services=self.services,
            source=source,
            target=target,
            job=job,
            run_id=run_id,
            gate=self._gate(job.limits),
            datastores=TargetDatastores(target),
        )

    def _gate(self, limits: TransferLimits) -> Gate:
        return Gate(limits, self.services.check_stop, budgets=self.services.repository.budgets())

    def _verification(self, target: str, job: JobSettings | None) -> VerificationContext:
        return VerificationContext(
            services=self.services,
            target=self.sites(target),
            modes=job.target_modes if job else DEFAULT_MODES,
            gate=self._gate(job.limits if job else TransferLimits()),
        )


def _planned(context: ReplicationContext, plan: VmPlan, datastores: Sequence[Datastore]) -> VmReport:
    """What a run would do, and what would stop it before it made anything."""
    try:
        plan = settled(plan, refuse_impossible(context, plan, datastores))
    except VreplError as error:
        return planned_vm_report(context, plan, error)
    return planned_vm_report(context, plan, None)
