"""The language of `vrepl lab set fault=…`: what each form means, and what is refused."""

from __future__ import annotations

import struct

import pytest

from vrepl_lab.errors import LabError
from vrepl_lab.faultrules import EXAMPLES, ApiFault, DiskFault, parse_api_fault, parse_disk_fault


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("read:error:14011", DiskFault("read", "error", code=14011)),
        ("read:error:connection_lost@100", DiskFault("read", "error", code=14011, first=100)),
        ("write:crash@50,vm=web-01", DiskFault("write", "crash", first=50, vm="web-01")),
        ("open:error:13@1x*,mode=hotadd", DiskFault("open", "error", code=13, count=0, mode="hotadd")),
        ("write:lost@3x2", DiskFault("write", "lost", first=3, count=2)),
        ("flush:freeze:250", DiskFault("flush", "freeze", milliseconds=250)),
        ("close:freeze", DiskFault("close", "freeze", milliseconds=1000)),
        ("query_allocated:error:not_supported", DiskFault("query_allocated", "error", code=6)),
        ("connect:error", DiskFault("connect", "error", code=1)),
        ("prepare:error:16064,vm=a,mode=nbd", DiskFault("prepare", "error", code=16064, vm="a", mode="nbd")),
    ],
)
def test_disk_fault(text: str, rule: DiskFault) -> None:
    assert parse_disk_fault(text) == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "CreateSnapshot_Task:task_fault:FileFault@2,vm=db-01",
            ApiFault("CreateSnapshot_Task", "task_fault", fault="FileFault", first=2, vm="db-01"),
        ),
        ("*:http_503@1x*,p=0.2", ApiFault("*", "http_503", count=0, probability=0.2)),
        ("PowerOnVM_Task:delay:1500", ApiFault("PowerOnVM_Task", "delay", delay_ms=1500)),
        ("*:drop", ApiFault("*", "drop")),
        ("CurrentTime:expire_session@4", ApiFault("CurrentTime", "expire_session", first=4)),
        ("RemoveSnapshot_Task:task_hang", ApiFault("RemoveSnapshot_Task", "task_hang")),
        (
            "CreateVM_Task:fault:InvalidState@1,message=not now: busy",
            ApiFault("CreateVM_Task", "fault", fault="InvalidState", message="not now: busy"),
        ),
    ],
)
def test_api_fault(text: str, rule: ApiFault) -> None:
    assert parse_api_fault(text) == rule


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("read", "OP:ACTION"),
        (":error:1", "OP:ACTION"),
        ("reed:error:1", "none of open, read"),
        ("read:explode", "none of error, freeze"),
        ("read:error:wrong", "not a whole number"),
        ("read:crash:1", "takes no argument"),
        ("read:error:1@0", "counted from 1"),
        ("read:error:1@1x0", "counted from 1"),
        ("read:error:1@x", "what follows @"),
        ("read:error:1,host=a", "none of vm="),
        ("read:error:1,mode=fast", "none of san"),
        ("read:error:1,vm=" + "x" * 48, "longer than 47"),
    ],
)
def test_refused_disk_fault(text: str, complaint: str) -> None:
    with pytest.raises(LabError, match=complaint):
        parse_disk_fault(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("CreateSnapshot_Task:fault", "name vSphere's fault"),
        ("CreateSnapshot_Task:break", "none of fault"),
        ("*:drop:1", "takes no argument"),
        ("*:drop,p=2", "probability"),
        ("*:drop,p=often", "probability"),
        ("*:delay:soon", "not a whole number"),
        ("*:drop,mode=nbd", "none of vm="),
    ],
)
def test_refused_api_fault(text: str, complaint: str) -> None:
    with pytest.raises(LabError, match=complaint):
        parse_api_fault(text)


def test_every_example_of_the_help_parses() -> None:
    for example in EXAMPLES:
        key, _, text = example.partition("=")
        {"fault": parse_disk_fault, "api_fault": parse_api_fault}[key](text)


def test_a_rule_is_laid_out_as_the_contract_says() -> None:
    packed = parse_disk_fault("write:freeze:7@3x2,vm=web-01,mode=nbdssl").pack()
    assert len(packed) == 120
    assert struct.unpack_from("<IIQQQQQ", packed) == (3, 2, 0, 3, 2, 7, 0)
    assert packed[48:96].rstrip(b"\0") == b"web-01"
    assert packed[96:104].rstrip(b"\0") == b"nbdssl"


def test_an_api_rule_skips_the_calls_before_its_first() -> None:
    value = parse_api_fault("CreateSnapshot_Task:task_fault:FileFault@3x2").as_json()
    assert (value["skip"], value["count"], value["fault"]) == (2, 2, "FileFault")
