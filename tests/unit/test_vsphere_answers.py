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
