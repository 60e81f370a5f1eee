"""Answers are read as pyVmomi reads them, whatever is in them: all that was ever recorded is read both ways."""

from __future__ import annotations

import io
import re
from functools import cache
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl

from tests.support.cassettes import FOLDER
from vrepl.vsphere import answers
from vrepl.vsphere.collector import property_specs
from vrepl.vsphere.stub import Stub

SUPPORT: Any = VmomiSupport
SOAP: Any = SoapAdapter
CASSETTES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SEVERAL = ["test_replica_from_birth_to_removal", "test_snapshot_of_a_tracked_vm", "test_hosts", "test_list_vms"]
WITH_TYPES = {"QueryConfigOption", "QueryConfigOptionEx"}
"""Their answers hold types as values, and are left to pyVmomi."""
CALLED = re.compile(rb"<soapenv:Body><(\w+) ")


@cache
def stub() -> Any:
    return SOAP.SoapStubAdapter(host="vcenter.test", version="vim.version.v8_0_2_0")


def recorded(name: str) -> list[tuple[str, bytes]]:
    """Method and answer of each call."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = []
    for one in yaml.load((FOLDER / f"{name}.yaml").read_bytes(), loader)["interactions"]:
        asked, answer = one["request"]["body"] or "", one["response"]["body"]["string"]
        called = CALLED.search(asked if isinstance(asked, bytes) else asked.encode())
        if called is not None:
            found.append((called[1].decode(), answer if isinstance(answer, bytes) else answer.encode()))
    return found


def the_same(one: Any, other: Any) -> bool:
    """Types and values, all the way down: references compare by what they refer to."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(the_same, one, other))
    if isinstance(one, SUPPORT.DataObject):
        return one.__dict__.keys() == other.__dict__.keys() and all(
            the_same(value, other.__dict__[key]) for key, value in one.__dict__.items()
        )
    return bool(one == other)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SEVERAL else pytest.mark.long) for name in CASSETTES]
)
def test_what_was_recorded_is_read_the_same(name: str) -> None:
    read = 0
    for method, body in recorded(name):
        kind = object if method == "Fetch" else SUPPORT.GuessWsdlMethod(method).info.result
        theirs = answers._Original(stub()).Deserialize(body, kind)
        assert the_same(answers.QuickDeserializer(stub()).Deserialize(io.BytesIO(body), kind), theirs), method
        if not isinstance(theirs, Exception) and method not in WITH_TYPES and b"LocalizedMethodFault" not in body:
            assert the_same(answers._Reading(stub()).answer(body, kind), theirs), "and not by pyVmomi"
            read += 1
    assert read or name == "test_login_refused"


def envelope(inner: str) -> bytes:
    return (
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema">'
        f"<soapenv:Body>{inner}</soapenv:Body></soapenv:Envelope>"
    ).encode()


ODD = {
    "a fault": (
        "<soapenv:Fault><faultcode>x</faultcode><faultstring>no</faultstring><detail>"
        '<NotFoundFault xmlns="urn:vim25" xsi:type="NotFound"/></detail></soapenv:Fault>',
        vim.VirtualMachine,
    ),
    "a fault as a value": (
        '<RResponse xmlns="urn:vim25"><returnval><obj type="Task">task-1</obj><missingSet><path>info</path><fault>'
        '<fault xsi:type="NoPermission"><object type="Folder">group-d1</object><privilegeId>x</privilegeId></fault>'
        "<localizedMessage>no</localizedMessage></fault></missingSet></returnval></RResponse>",
        vmodl.query.PropertyCollector.ObjectContent,
    ),
    "a property that is a list": (
        '<FetchResponse xmlns="urn:vim25"><returnval xsi:type="ArrayOfManagedObjectReference">'
        '<ManagedObjectReference xsi:type="ManagedObjectReference" type="VirtualMachine">vm-1</ManagedObjectReference>'
        '<ManagedObjectReference xsi:type="ManagedObjectReference" type="Folder">f-1</ManagedObjectReference>'
        "</returnval></FetchResponse>",
        SUPPORT.GetVmodlType("vmodl.ManagedObject[]"),
    ),
    "nothing": ('<RResponse xmlns="urn:vim25"></RResponse>', type(None)),
    "a prefix that stands for two": (
        '<RResponse xmlns="urn:vim25"><returnval xmlns="urn:vim25" type="Task">task-1</returnval>'
        '<other xmlns="urn:other"/></RResponse>',
        vim.Task,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_answers_are_read_the_same(name: str) -> None:
    inner, kind = ODD[name]
    body = envelope(inner)
    ours: list[Any] = []
    for deserializer, source in ((answers._Original(stub()), body), (answers.QuickDeserializer(stub()), body)):
        given: Any = source if deserializer.__class__ is answers._Original else io.BytesIO(source)
        try:
            ours.append(deserializer.Deserialize(given, kind))
        except Exception as error:
            ours.append(type(error))
    assert the_same(*ours)


def test_a_broken_answer_fails_as_it_always_did() -> None:
    for body in (b"", b"<html>", envelope("<RResponse><returnval>")[:-40]):
        with pytest.raises(SOAP.ExpatError):
            answers.QuickDeserializer(stub()).Deserialize(io.BytesIO(body), str)


def test_a_large_answer_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LARGEST", 1000)
    [(method, body)] = [one for one in recorded("test_list_vms") if one[0] == "RetrievePropertiesEx"][:1]
    kind = SUPPORT.GuessWsdlMethod(method).info.result
    theirs = answers._Original(stub()).Deserialize(body, kind)
    assert the_same(answers.QuickDeserializer(stub()).Deserialize(io.BytesIO(body), kind), theirs)


def devices_of(*devices: str, declared: str = "") -> bytes:
    return envelope(
        f'<FetchResponse xmlns="urn:vim25"><returnval {declared} xsi:type="ArrayOfVirtualDevice">'
        + "".join(f"<VirtualDevice {device}</VirtualDevice>" for device in devices)
        + "</returnval></FetchResponse>"
    )


KEYBOARD = 'xsi:type="VirtualKeyboard"><key>600</key><deviceInfo xsi:type="Description"><label>K</label><summary>K</summary></deviceInfo>'  # fmt: skip # noqa: E501
MOUSE = 'xsi:type="VirtualPointingDevice"><key>700</key>'
CARD = (
    'xsi:type="VirtualVmxnet3"><key>4000</key><backing xsi:type="VirtualEthernetCardNetworkBackingInfo">'
    '<deviceName>n</deviceName><network type="Network">network-6</network></backing>'
)


def test_a_device_that_was_read_before_is_known_by_its_bytes_and_is_another_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "_devices", {})
    kind = SUPPORT.GetVmodlType("vim.vm.device.VirtualDevice[]")
    for body in (devices_of(KEYBOARD, CARD), devices_of(MOUSE, KEYBOARD, CARD), devices_of(KEYBOARD, KEYBOARD)):
        theirs = answers._Original(stub()).Deserialize(body, kind)
        first, second = (answers._Reading(stub()).answer(body, kind) for _ in range(2))
        assert the_same(first, theirs)
        assert the_same(second, theirs)
        assert not {id(one) for one in first} & {id(one) for one in second}
    [known] = answers._devices.values()
    assert len(known) == 2, "not the card: what it refers to belongs to one login"


def test_the_same_bytes_mean_something_else_where_a_prefix_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_devices", {})
    kind = SUPPORT.GetVmodlType("vim.vm.device.VirtualDevice[]")
    for declared in ("", 'xmlns:other="urn:other"'):
        assert len(answers._Reading(stub()).answer(devices_of(KEYBOARD, declared=declared), kind)) == 1
    assert len(answers._devices) == 2


def test_a_request_for_properties_reads_as_pyvmomi_writes_it_however_often_it_is_made() -> None:
    ours = Stub(lambda *_: None, server="vcenter.test", port=443, version=stub().version, context=None, timeout=1.0)  # type: ignore[arg-type]
    query: Any = vmodl.query.PropertyCollector
    info = SUPPORT.GuessWsdlMethod("RetrievePropertiesEx").info
    collector = query("propertyCollector", ours)
    wanted = [
        property_specs(((vim.VirtualMachine, ("name", "config.extraConfig")), (vim.Task, ("info.state",)))),
        property_specs(((vim.VirtualMachine, ("name",)),)),
    ]
    for number in range(6):
        step = query.TraversalSpec(name="step", path="recentTask", skip=False, type=vim.VirtualMachine)
        start = query.ObjectSpec(obj=vim.VirtualMachine(f"vm-{number}", ours), skip=False, selectSet=[step])
        spec = query.FilterSpec(objectSet=[start], propSet=wanted[number % 2], reportMissingObjectsInResults=True)
        asked = [[spec], query.RetrieveOptions(maxObjects=1000)]
        theirs: Any = SOAP.SoapStubAdapter.SerializeRequest(ours, collector, info, asked)
        assert ours.SerializeRequest(collector, info, asked) == theirs
    assert len(ours._written) == 2
