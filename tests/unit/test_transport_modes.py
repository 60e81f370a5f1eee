"""Promises of the choice of transport modes: each line of the rules, and the reason that the operator reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from vrepl.errors import DiskError
from vrepl.model import (
    Controller,
    DataEngine,
    Datastore,
    Disk,
    Hardware,
    PowerState,
    Side,
    TransportMode,
    VirtualMachine,
)
from vrepl.planner.modes import DiskQuestion, ProxyFacts, ProxyVm, choose_modes
from vrepl.planner.preflight import not_replicable_reason, unreplicable_disk_reason
from vrepl.proxy.chooser import RuleModeChooser

SAN, HOTADD, NBDSSL, NBD = TransportMode.SAN, TransportMode.HOTADD, TransportMode.NBDSSL, TransportMode.NBD
DEFAULT = (SAN, HOTADD, NBDSSL)
TIB = 1024**4

HARDWARE = Hardware(
    19, "other", "efi", False, 1, 1, 512, controllers=(Controller(1000, "pvscsi", 0), Controller(200, "ide", 0))
)
DISK = Disk(2000, 0, "Hard disk 1", "[a] web/web.vmdk", "[a] web/web.vmdk", 1 << 30, "uuid", "a", thin=False)
VM = VirtualMachine(
    ref="vm-1",
    name="web",
    instance_uuid="i",
    bios_uuid="b",
    power=PowerState.ON,
    host="esx-1",
    datacenter="dc",
    folder_ref="group-1",
    hardware=HARDWARE,
    disks=(DISK,),
)
STORE = Datastore("datastore-1", "a", "VMFS", TIB, TIB, luns=("naa.1", "naa.2"), hosts=("esx-1", "esx-2"))
PROXY_VM = ProxyVm("vm-9", "proxy", "esx-1", "dc", free_scsi_slots=4, disk_paths=frozenset({"[a] proxy/proxy.vmdk"}))
ABLE = ProxyFacts(
    name="p",
    vm=PROXY_VM,
    visible_luns=frozenset({"naa.1", "naa.2", "naa.3"}),
    datastores_of_host={"esx-1": frozenset({"datastore-1"}), "esx-2": frozenset({"datastore-1"})},
)
SOURCE = DiskQuestion(Side.SOURCE, VM, DISK, STORE, first_run=False)
TARGET = DiskQuestion(Side.TARGET, VM, DISK, STORE, first_run=True)


def reasons(question: DiskQuestion, proxy: ProxyFacts = ABLE, allowed: Any = DEFAULT) -> dict[TransportMode, str]:
    return {choice.mode: choice.reason for choice in choose_modes(question, proxy, allowed).ruled_out}


def with_disk(question: DiskQuestion, **changes: Any) -> DiskQuestion:
    return replace(question, disk=replace(question.disk, **changes))


def with_store(question: DiskQuestion, **changes: Any) -> DiskQuestion:
    return replace(question, datastore=replace(question.datastore, **changes))


def with_vm(question: DiskQuestion, **changes: Any) -> DiskQuestion:
    return replace(question, vm=replace(question.vm, **changes))


def with_proxy_vm(**changes: Any) -> ProxyFacts:
    return replace(ABLE, vm=replace(PROXY_VM, **changes))


@pytest.mark.parametrize("question", [SOURCE, TARGET])
def test_where_all_are_possible_the_jobs_order_counts(question: DiskQuestion) -> None:
    assert choose_modes(question, ABLE, DEFAULT).modes == DEFAULT
    assert choose_modes(question, ABLE, (NBDSSL, SAN)).modes == (NBDSSL, SAN)


def test_each_mode_has_a_reason_whether_usable_or_not() -> None:
    plan = choose_modes(TARGET, replace(ABLE, vm=None), DEFAULT)
    choices = [*plan.usable, *plan.ruled_out]
    assert sorted(choice.mode for choice in choices) == sorted(TransportMode)
    assert all(choice.reason for choice in choices)


def test_nbd_only_where_the_job_lists_it() -> None:
    assert NBD not in choose_modes(SOURCE, ABLE, DEFAULT).modes
    assert "unencrypted" in reasons(SOURCE)[NBD]
    assert choose_modes(SOURCE, ABLE, (NBD,)).modes == (NBD,)


SAN_RULES: list[tuple[str, DiskQuestion, ProxyFacts, str | None]] = [
    ("reads a VMFS whose LUNs are all seen", SOURCE, ABLE, None),
    ("reads thin disks", with_disk(SOURCE, thin=True), ABLE, None),
    ("reads on later runs", replace(SOURCE, first_run=False), ABLE, None),
    ("not one of two extents", SOURCE, replace(ABLE, visible_luns=frozenset({"naa.1"})), "(naa.2)"),
    ("no LUN at all", SOURCE, replace(ABLE, visible_luns=frozenset()), "does not see the LUN behind a (naa.1, naa.2)"),
    ("unknown LUNs", with_store(SOURCE, luns=()), ABLE, "no LUN is known"),
    ("local disk", with_store(SOURCE, luns=(), local=True), ABLE, "local to its host"),
    *(
        (f"not for {kind}", with_store(SOURCE, kind=kind), ABLE, f"is {kind}, and SAN needs VMFS")
        for kind in ("NFS", "NFS41", "vsan", "VVOL", "OTHER")
    ),
    ("encrypted disk", with_disk(SOURCE, encrypted=True), ABLE, "encrypted"),
    ("writes a thick disk on the first run", TARGET, ABLE, None),
    ("never writes a thin disk", with_disk(TARGET, thin=True), ABLE, "thick"),
    ("never writes on later runs", replace(TARGET, first_run=False), ABLE, "before the first restore point"),
]


@pytest.mark.parametrize(
    ("question", "proxy", "why_not"), [rule[1:] for rule in SAN_RULES], ids=[r[0] for r in SAN_RULES]
)
def test_san(question: DiskQuestion, proxy: ProxyFacts, why_not: str | None) -> None:
    check(SAN, question, proxy, why_not)


HOTADD_RULES: list[tuple[str, DiskQuestion, ProxyFacts, str | None]] = [
    ("same datacenter and datastore", SOURCE, ABLE, None),
    ("writes thin disks and deltas", replace(with_disk(TARGET, thin=True), first_run=False), ABLE, None),
    ("a replica still to be made", with_vm(TARGET, ref="", host="", datacenter=""), ABLE, None),
    ("no VM of this site", SOURCE, replace(ABLE, vm=None, no_vm_reason="2 VMs have its uuid"), "2 VMs have its uuid"),
    ("another datacenter", SOURCE, with_proxy_vm(datacenter="other"), "is in datacenter other, the disk in dc"),
    ("datastore not mounted", SOURCE, with_proxy_vm(host="esx-3"), "host esx-3 of the proxy VM proxy does not mount"),
    ("no slot", SOURCE, with_proxy_vm(free_scsi_slots=0), "no free SCSI slot"),
    ("IDE", with_disk(SOURCE, controller_key=200), ABLE, "IDE"),
    ("62 TB is fine", with_disk(SOURCE, capacity=62 * TIB), ABLE, None),
    ("above 62 TB", with_disk(SOURCE, capacity=62 * TIB + 512), ABLE, "62 TB"),
    ("attached already", with_disk(SOURCE, path="[a] proxy/proxy.vmdk"), ABLE, "hangs on the proxy VM proxy already"),
    ("the proxy itself", with_vm(SOURCE, ref="vm-9"), ABLE, "of the proxy VM itself"),
    ("NFS 3, same host", with_store(SOURCE, kind="NFS"), ABLE, None),
    ("NFS 3, other host", with_vm(with_store(SOURCE, kind="NFS"), host="esx-2"), ABLE, "host esx-2"),
    ("NFS 3, host not known yet", with_vm(with_store(TARGET, kind="NFS"), host=""), ABLE, "any of esx-1, esx-2"),
    ("NFS 4.1, other host", with_vm(with_store(SOURCE, kind="NFS41"), host="esx-2"), ABLE, None),
    ("reads vSAN and vVol", with_store(SOURCE, kind="vsan"), ABLE, None),
    ("writes vSAN from a proxy elsewhere", with_store(TARGET, kind="vsan"), ABLE, "does not lie on it"),
    (
        "writes vSAN from a proxy on it",
        with_store(TARGET, kind="vsan"),
        with_proxy_vm(datastore_refs=frozenset({"datastore-1"})),
        None,
    ),
    (
        "a datastore of the same name that the proxy's host does not mount",
        with_store(SOURCE, ref="datastore-2"),
        ABLE,
        "does not mount datastore a",
    ),
    ("encrypted disk, plain proxy", with_disk(SOURCE, encrypted=True), ABLE, "proxy VM proxy is not"),
    ("encrypted disk and proxy", with_disk(SOURCE, encrypted=True), with_proxy_vm(encrypted=True), None),
]


@pytest.mark.parametrize(
    ("question", "proxy", "why_not"), [rule[1:] for rule in HOTADD_RULES], ids=[rule[0] for rule in HOTADD_RULES]
)
def test_hotadd(question: DiskQuestion, proxy: ProxyFacts, why_not: str | None) -> None:
    check(HOTADD, question, proxy, why_not)


def closed(*hosts: str) -> ProxyFacts:
    return replace(ABLE, closed_nfc_hosts=dict.fromkeys(hosts, "Connection refused"))


NETWORK_RULES: list[tuple[str, DiskQuestion, ProxyFacts, str | None]] = [
    ("open", SOURCE, ABLE, None),
    ("another host's port", SOURCE, closed("esx-2"), None),
    ("the VM's host's port", SOURCE, closed("esx-1"), "NFC port of ESXi host esx-1 cannot be reached: Connection ref"),
    ("any candidate of a replica still to be made", with_vm(TARGET, host=""), closed("esx-2"), "ESXi host esx-2"),
    ("any kind of datastore", with_store(SOURCE, kind="VVOL"), ABLE, None),
]


@pytest.mark.parametrize("mode", [NBDSSL, NBD])
@pytest.mark.parametrize(
    ("question", "proxy", "why_not"), [rule[1:] for rule in NETWORK_RULES], ids=[rule[0] for rule in NETWORK_RULES]
)
def test_network(mode: TransportMode, question: DiskQuestion, proxy: ProxyFacts, why_not: str | None) -> None:
    check(mode, question, proxy, why_not)


@pytest.mark.parametrize("mode", [NBDSSL, NBD])
def test_vsan_esa_is_written_with_a_warning(mode: TransportMode) -> None:
    """No source says that it cannot be; the operator is told that none says it can, either."""
    plan = choose_modes(with_store(TARGET, kind="vsan", vsan_esa=True), ABLE, (mode,))
    assert [choice.mode for choice in plan.usable] == [mode]
    assert "warning: datastore a is vSAN ESA" in plan.usable[0].reason
    plain = choose_modes(with_store(TARGET, kind="vsan"), ABLE, (mode,))
    assert "warning" not in plain.usable[0].reason


@pytest.mark.parametrize("mode", [HOTADD, NBDSSL])
def test_vsan_esa_is_read(mode: TransportMode) -> None:
    check(mode, with_store(SOURCE, kind="vsan", vsan_esa=True), ABLE, None)


def check(mode: TransportMode, question: DiskQuestion, proxy: ProxyFacts, why_not: str | None) -> None:
    plan = choose_modes(question, proxy, (mode,))
    if why_not is None:
        assert plan.modes == (mode,), plan.ruled_out
    else:
        assert plan.modes == ()
        assert why_not in reasons(question, proxy, (mode,))[mode]


NEVER: Mapping[str, tuple[VirtualMachine, str]] = {
    "physical RDM": (replace(VM, disks=(replace(DISK, rdm="physicalMode"),)), "raw device mapping"),
    "independent persistent": (replace(VM, disks=(replace(DISK, mode="independent_persistent"),)), "independent"),
    "independent nonpersistent": (replace(VM, disks=(replace(DISK, mode="independent_nonpersistent"),)), "independent"),
    "multi-writer": (replace(VM, disks=(replace(DISK, sharing="sharingMultiWriter"),)), "multi-writer"),
    "bus sharing": (
        replace(
            VM, hardware=replace(HARDWARE, controllers=(Controller(1000, "pvscsi", 0, sharing="physicalSharing"),))
        ),
        "bus sharing",
    ),
    "template": (replace(VM, template=True), "template"),
    "virtual TPM": (replace(VM, virtual_tpm=True), "virtual TPM"),
}


@pytest.mark.parametrize(("vm", "reason"), list(NEVER.values()), ids=list(NEVER))
def test_what_no_snapshot_carries_is_refused_before_any_mode(vm: VirtualMachine, reason: str) -> None:
    assert reason in (not_replicable_reason(vm) or "")


def test_a_virtual_mode_rdm_and_a_plain_disk_are_not_refused() -> None:
    assert unreplicable_disk_reason(replace(DISK, rdm="virtualMode")) is None
    assert not_replicable_reason(VM) is None


class TestModeChooser:
    """What is asked of the site once, and what failed."""

    def chooser(self, asked: list[str]) -> RuleModeChooser:
        def facts(site: str) -> ProxyFacts:
            asked.append(site)
            return ABLE

        return RuleModeChooser(facts, lambda site: [STORE])

    def test_facts_are_asked_for_once_per_site(self) -> None:
        asked: list[str] = []
        chooser = self.chooser(asked)
        for site in ("prod", "prod", "dr"):
            assert chooser.plan(Side.SOURCE, site, VM, DISK, first_run=True, allowed=DEFAULT).modes == DEFAULT
        assert asked == ["prod", "dr"]

    def test_a_mode_that_failed_is_not_offered_again_for_that_datastore(self) -> None:
        chooser = self.chooser([])
        chooser.failed("prod", "a", SAN, "VixError 13")
        plan = chooser.plan(Side.SOURCE, "prod", VM, DISK, first_run=True, allowed=DEFAULT)
        assert plan.modes == (HOTADD, NBDSSL)
        assert "failed earlier in this run (VixError 13)" in plan.ruled_out[0].reason
        assert SAN in chooser.plan(Side.SOURCE, "dr", VM, DISK, first_run=True, allowed=DEFAULT).modes

    def test_without_any_mode_the_error_says_why_of_each(self) -> None:
        chooser = self.chooser([])
        with pytest.raises(DiskError) as caught:
            chooser.plan(Side.TARGET, "dr", VM, replace(DISK, thin=True), first_run=True, allowed=(SAN,))
        assert "san: writing over SAN needs a thick disk" in caught.value.message
        assert caught.value.hint

    def test_what_hangs_on_the_proxy_is_known_by_its_folder_and_forgotten_once_detached(self) -> None:
        left = replace(PROXY_VM, disk_paths=frozenset({"[a] proxy/proxy.vmdk", "[a] web/web-000002.vmdk"}))
        chooser = RuleModeChooser(lambda site: replace(ABLE, vm=left), lambda site: [STORE])
        web = replace(VM, disks=(replace(DISK, path="[a] web/web.vmdk", base_path="[a] web/web.vmdk"),))
        other = replace(VM, disks=(replace(DISK, path="[a] web-2/web.vmdk", base_path=""),))
        assert chooser.left_on_proxy("prod", web)
        assert not chooser.left_on_proxy("prod", other)
        assert not chooser.left_on_proxy("prod", replace(web, ref=left.ref))
        chooser.detached("prod", other, 5)
        chooser.detached("prod", web, 2)
        assert not chooser.left_on_proxy("prod", web)
        plan = chooser.plan(Side.SOURCE, "prod", web, web.disks[0], first_run=True, allowed=(HOTADD,))
        assert [choice.at_once for choice in plan.usable] == [left.free_scsi_slots + 2]

    def test_two_datacenters_with_equal_datastore_names_get_the_modes_of_their_own(self) -> None:
        """By name alone, both disks would have got the modes of whichever datastore was listed last."""
        nfs = replace(STORE, ref="datastore-2", kind="NFS41", luns=(), hosts=("esx-9",), datacenter="dc-2")
        first = replace(STORE, datacenter="dc")
        far = replace(VM, ref="vm-2", host="esx-9", datacenter="dc-2")
        for stores in ([first, nfs], [nfs, first]):
            chooser = RuleModeChooser(lambda site: ABLE, lambda site, stores=stores: stores)  # type: ignore[misc]
            here = replace(DISK, datastore_ref="datastore-1")
            there = replace(DISK, datastore_ref="datastore-2")
            assert chooser.plan(Side.SOURCE, "prod", VM, here, first_run=True, allowed=DEFAULT).modes == DEFAULT
            assert chooser.plan(Side.SOURCE, "prod", far, there, first_run=True, allowed=DEFAULT).modes == (NBDSSL,)
            # A disk that is still to be made is known by name, and by the host or datacenter of its VM.
            assert chooser.plan(Side.TARGET, "prod", far, DISK, first_run=True, allowed=DEFAULT).modes == (NBDSSL,)
            chooser.failed("prod", there.store, NBDSSL, "VixError 13")
            assert NBDSSL in chooser.plan(Side.SOURCE, "prod", VM, here, first_run=True, allowed=DEFAULT).modes

    def test_a_proxy_of_another_datacenter_has_nothing_left_of_a_vm(self) -> None:
        left = replace(PROXY_VM, datacenter="dc-2", disk_paths=frozenset({"[a] web/web-000002.vmdk"}))
        chooser = RuleModeChooser(lambda site: replace(ABLE, vm=left), lambda site: [STORE])
        assert not chooser.left_on_proxy("prod", VM)

    def test_a_datastore_that_is_not_known_rules_out_san(self) -> None:
        plan = self.chooser([]).plan(
            Side.SOURCE, "prod", VM, replace(DISK, datastore="elsewhere"), first_run=True, allowed=DEFAULT
        )
        assert plan.modes == (NBDSSL,)


def own(**changes: Any) -> ProxyFacts:
    vm = replace(PROXY_VM, **{"disk_uuids": True} | changes)
    return replace(ABLE, vm=vm, engine=DataEngine.OWN, engine_reason="no VDDK in /opt")


@pytest.mark.parametrize("question", [SOURCE, TARGET])
def test_vrepls_own_engine_reaches_what_vddk_does_but_san(question: DiskQuestion) -> None:
    plan = choose_modes(question, own(), DEFAULT)
    assert plan.modes == (HOTADD, NBDSSL)
    assert plan.engine is DataEngine.OWN
    assert "takes VDDK (no VDDK in /opt)" in reasons(question, own())[SAN]
    assert all("by vrepl's own engine" in choice.reason for choice in plan.usable)
    assert plan.usable[0].at_once == PROXY_VM.free_scsi_slots


OWN_RULES: list[tuple[str, DiskQuestion, ProxyFacts, str | None]] = [
    ("disks that tell their uuid", SOURCE, own(), None),
    ("disks that do not", SOURCE, own(disk_uuids=False), "set disk.EnableUUID = TRUE"),
    ("a proxy that a job replicates", TARGET, own(replicated_by="all"), "is replicated by job all"),
    ("a proxy with snapshots", TARGET, own(has_snapshots=True), "has snapshots, and another would take along"),
    ("VDDK's own conditions hold", SOURCE, own(datacenter="other"), "is in datacenter other"),
    ("NVMe and SATA disks are taken", with_disk(SOURCE, controller_key=31000), own(), None),
    ("IDE disks are not", with_disk(SOURCE, controller_key=200), own(), "IDE"),
]


@pytest.mark.parametrize(
    ("question", "proxy", "why_not"), [rule[1:] for rule in OWN_RULES], ids=[rule[0] for rule in OWN_RULES]
)
def test_hotadd_by_vrepls_own_engine(question: DiskQuestion, proxy: ProxyFacts, why_not: str | None) -> None:
    check(HOTADD, question, proxy, why_not)


def test_a_proxy_is_not_replicated_while_disks_hang_on_it() -> None:
    proxy = replace(VM, extra_config={"vrepl.attached.1000-1": "[]"})
    assert "a snapshot of it would take them along" in str(not_replicable_reason(proxy))
    assert not_replicable_reason(VM) is None
