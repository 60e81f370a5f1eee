"""`Engine`: plans and runs jobs over their VMs. The only place that orders side effects is this package."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from vrepl.engine.context import Patience, RunContext, timestamped_id
from vrepl.engine.events import EngineEvents, SilentEvents
from vrepl.engine.gate import Gate
from vrepl.engine.knowledge import TargetNames, gather, mapping_request
from vrepl.engine.preflight import refuse_impossible
from vrepl.engine.recovery import recover
from vrepl.engine.reporting import planned_vm_report
from vrepl.engine.verification import verify_replica
from vrepl.engine.vm_run import VmRun
from vrepl.errors import InterruptedRunError, LockedError, NotFoundError, UsageError, VreplError, stopped_on_request
from vrepl.model import Datastore, JobSettings, ReplicaPlacement, VirtualMachine
from vrepl.planner.vm import VmPlan, plan_vm
from vrepl.ports import Clock, DataMovers, NewId, Site, TransportAdvisor
from vrepl.report import format as words
from vrepl.report.model import ErrorReport, Result, RunReport, VerifyReport, VmReport
from vrepl.repository.replica import ReplicaFolder
from vrepl.repository.store import Repository

logger = logging.getLogger(__name__)

NO_MAPPING: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class Engine:
    """Takes everything it needs of the world as arguments, so that a test can give it a small one."""

    repository: Repository
    sites: Callable[[str], Site]
    """Site by configured name; logs in on first use."""
    movers: DataMovers
    transports: TransportAdvisor
    clock: Clock
    new_id: NewId
    events: EngineEvents = field(default_factory=SilentEvents)
    patience: Patience = field(default_factory=Patience)
    _stop: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Ask everything that runs to end soon, leaving the sites clean; from any thread or a signal handler."""
        self._stop.set()
        self.movers.stop()

    # -- plan ---------------------------------------------------------------------------------------------------------

    def plan(
        self, job: JobSettings, vm_names: Sequence[str] = (), *, mapping: Mapping[str, str] = NO_MAPPING
    ) -> RunReport:
        """What `replicate` would do, without doing anything."""
        source, target = self.sites(job.source), self.sites(job.target)
        report = RunReport(job=job.name)
        names = TargetNames(target)
        found, missing = self._find(source, job, vm_names)
        context = self._context(job, source, target, run_id="")
        datastores = target.datastores()
        for vm in found:
            folder = self.repository.replica(source.name, vm.instance_uuid)
            map_to = mapping.get(vm.name)
            request = mapping_request(self.repository, vm, source, target, map_to) if map_to else None
            known = gather(folder, vm, job.replica_name_of(vm.name), self.repository.id, target, names, request)
            plan = plan_vm(vm, job, known)
            report.vms.append(planned_vm_report(context, plan, _obstacle(context, plan, datastores)))
        report.vms.extend(missing)
        report.soap_calls = {source.name: source.soap_calls, target.name: target.soap_calls}
        return report

    # -- replicate ----------------------------------------------------------------------------------------------------

    def replicate(
        self,
        job: JobSettings,
        vm_names: Sequence[str] = (),
        *,
        lock_wait: float = 0.0,
        mapping: Mapping[str, str] = NO_MAPPING,
    ) -> RunReport:
        """Run the job. Raises LockedError if another run of it goes on after `lock_wait` seconds.

        `mapping`: source VM name -> name of an existing VM of the target that shall become its replica.
        """
        self.repository.check_writable()
        with self._job_lock(job.name, lock_wait):
            source, target = self.sites(job.source), self.sites(job.target)
            calls_before = {site.name: site.soap_calls for site in (source, target)}
            context = self._context(job, source, target, run_id=timestamped_id(self.clock(), self.new_id()))
            report = RunReport(job=job.name, id=context.run_id, started=self.clock())
            found, missing = self._find(source, job, vm_names)
            names = TargetNames(target)
            self.events.run_started(context.run_id, job.name, [vm.name for vm in found])
            report.vms.extend(missing)
            for vm in missing:
                self.events.vm_finished(vm)
            self._recover_dropped(context)
            report.vms.extend(self._run_all(context, found, names, mapping))
            report.finished = self.clock()
            report.interrupted = self._stop.is_set()
            report.soap_calls = {site.name: site.soap_calls - calls_before[site.name] for site in (source, target)}
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
        started = self.clock()
        report = VerifyReport(started=started, finished=started)
        for folder in folders:
            record = folder.record
            target = self.sites(record.target_site)
            settings = (jobs or {}).get(record.job) or JobSettings(
                name=record.job,
                source=record.source_site,
                target=record.target_site,
                vms=(record.source_name,),
                placement=ReplicaPlacement(host=None, datastore=""),
            )
            context = self._context(settings, target, target, run_id="")
            verification = verify_replica(context, folder, restore_point_id)
            report.vms.append(verification)
            if self._stop.is_set():
                break
        report.finished = self.clock()
        report.interrupted = self._stop.is_set()
        return report

    def _run_all(
        self, context: RunContext, vms: Sequence[VirtualMachine], names: TargetNames, mapping: Mapping[str, str]
    ) -> list[VmReport]:
        def run_one(vm: VirtualMachine) -> VmReport:
            report = VmRun(context, vm, names, map_to=mapping.get(vm.name)).run()
            self.events.vm_finished(report)
            return report

        with ThreadPoolExecutor(max_workers=max(1, context.job.parallel_vms), thread_name_prefix="vm") as pool:
            return list(pool.map(run_one, vms))

    def _recover_dropped(self, context: RunContext) -> None:
        """Clean up after runs that died over VMs that have left the job since: none of its runs would ever again."""
        job = context.job
        for folder in self.repository.unfinished():
            record = folder.record
            if (record.job, record.source_site, record.target_site) != (job.name, job.source, job.target):
                continue
            if record.source_name in job.vms or self._stop.is_set():
                continue
            try:
                vm = context.source.find_vm_by_instance_uuid(record.source_instance_uuid)
                if vm is None or vm.name in job.vms:
                    continue
                with folder.lock():
                    for note in recover(context, folder, vm):
                        self.events.note(vm.name, f"no longer in job {job.name}: {note}")
            except (LockedError, InterruptedRunError):  # somebody sees to it; or the run ends, and says so
                continue
            except VreplError as error:
                self.events.note(
                    record.source_name,
                    f"no longer in job {job.name}, and what its unfinished run left cannot be cleaned up: {error}",
                )

    @contextmanager
    def _job_lock(self, job: str, wait_seconds: float) -> Iterator[None]:
        """Says that it waits for another run, and stops waiting when asked to."""

        def pause(seconds: float) -> None:
            if self._stop.wait(seconds):
                raise InterruptedRunError(f"stopped while waiting for another run of job {job}")

        with ExitStack() as held:
            try:
                held.enter_context(self.repository.job_lock(job))
            except LockedError as error:
                if wait_seconds <= 0:
                    raise
                patience = words.duration(wait_seconds)
                self.events.note("", f"{error.message}; waiting up to {patience} for that to end")
                held.enter_context(self.repository.job_lock(job, wait_seconds, sleep=pause))
            yield

    def _save(self, run_id: str, report: RunReport) -> None:
        try:
            self.repository.save_run(run_id, report.to_json())
        except VreplError as error:
            logger.warning("the report of run %s could not be kept: %s", run_id, error)

    def _find(
        self, source: Site, job: JobSettings, vm_names: Sequence[str]
    ) -> tuple[list[VirtualMachine], list[VmReport]]:
        """The job's VMs (or the named ones of them), and a failed report for each that does not exist."""
        foreign = [name for name in vm_names if name not in job.vms]
        if foreign:
            raise NotFoundError(
                f"job {job.name} has no VM named {', '.join(foreign)}",
                hint=f"its VMs are: {', '.join(job.vms)}",
            )
        wanted = [name for name in job.vms if not vm_names or name in vm_names]
        if not wanted:
            raise UsageError(f"job {job.name} names no VM", hint="list them in its `vms`")
        try:
            return source.find_vms(wanted), []
        except NotFoundError:
            if len(wanted) == 1:
                raise
        found: list[VirtualMachine] = []
        missing: list[VmReport] = []
        for name in wanted:
            try:
                found.extend(source.find_vms([name]))
            except NotFoundError as error:
                missing.append(VmReport(name=name, result=Result.FAILED, error=ErrorReport.of(error)))
        return found, missing

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise stopped_on_request()

    def _context(self, job: JobSettings, source: Site, target: Site, run_id: str) -> RunContext:
        return RunContext(
            repository=self.repository,
            source=source,
            target=target,
            movers=self.movers,
            transports=self.transports,
            job=job,
            run_id=run_id,
            clock=self.clock,
            new_id=self.new_id,
            events=self.events,
            stop=self._stop,
            gate=Gate(job, self._check_stop),
            patience=self.patience,
        )


def _obstacle(context: RunContext, plan: VmPlan, datastores: Sequence[Datastore]) -> VreplError | None:
    """What would stop a run of this plan before it made anything."""
    try:
        refuse_impossible(context, plan, datastores)
    except VreplError as error:
        return error
    return None
