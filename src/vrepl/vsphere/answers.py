"""Answers of the API, read in less than half of the processor time: reading them was most of what an unchanged VM cost.

pyVmomi (9) reads an answer by a Python function per tag, which looks up types, walks their bases and takes locks anew
for each of them. Here the XML is read by the tree builder in C, and what follows from a type is worked out once per
type, by pyVmomi itself. The objects are pyVmomi's own, and hold the same.

Most devices of a VM (keyboard, PCI bridge, IDE controllers) read the same in each answer, at each VM: they are known
again by their bytes, and are not read at all.

What is not plain data (faults, types and methods as values, references to other servers) and whatever meets an
exception is given to pyVmomi, from its first byte on: its word counts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from pyVmomi import Iso8601, SoapAdapter, VmomiSupport

_soap: Any = SoapAdapter
_support: Any = VmomiSupport
_iso: Any = Iso8601
_Original: Any = _soap.SoapResponseDeserializer

LARGEST = 16 << 20
"""Bytes of an answer that is held as a tree; larger ones are read by pyVmomi, as they come."""

DEVICES_KNOWN = 256
"""Devices that are known by their bytes, at the most."""

_DEVICE, _DEVICE_END = b"<VirtualDevice ", b"</VirtualDevice>"
_OF_ONE_VM = re.compile(rb"<(?:fileName|macAddress|!)|xmlns|\stype=")
"""What a device that another VM may have word for word does not hold. Nor may it hold a declaration of names (its bytes
alone would not say what it is) or a reference (which belongs to one login)."""
_MARK = b"vrepl-device"
"""An attribute that stands for a device of an answer; an answer that speaks of it already has none put into it."""

_MARK_NAME = _MARK.decode()

_XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
_DECLARED = re.compile(rb"""xmlns(?::([\w.-]+))?\s*=\s*["']([^"']*)["']""")
_BODY = "{http://schemas.xmlsoap.org/soap/envelope/}Body"


_NAMED_VALUE: Any = _support.GetVmodlType("vmodl.DynamicProperty")
"""Most of the objects in an answer about properties are such."""


class _UnusualError(Exception):
    """For pyVmomi to read."""


def _namespaces(body: bytes) -> dict[str, str]:
    """Prefix -> namespace: types are named with prefixes, which the tree no longer tells."""
    found: dict[str, str] = {}
    for prefix, uri in set(_DECLARED.findall(body)):
        if found.setdefault(prefix.decode(), uri.decode()) != uri.decode():
            raise _UnusualError  # it stands for several, or a text looks as if it did
    return found


@dataclass(frozen=True, slots=True)
class _Property:
    name: str
    type: Any
    many: bool
    scalar: Callable[[str], Any] | None
    """Reads a value whose tag says nothing more."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How values of one type are read."""

    type: Any
    scalar: Callable[[str], Any] | None = None
    is_list: bool = False
    is_reference: bool = False


_properties: dict[tuple[Any, str, str], _Property] = {}
"""By type, tag (its namespace included) and the API's version."""
_defaults: dict[Any, tuple[dict[str, Any], list[tuple[str, Any]]]] = {}
"""What a new object holds: values that never change, and lists, of which each object has its own."""
_devices: dict[Any, dict[bytes, Any]] = {}
"""Devices by their bytes, by what these are read with: the meaning of prefixes, and the API's version."""
_kinds: dict[tuple[Any, str | None, str, str], _Kind] = {}
"""By the type that is expected, the one that the tag names, its namespace, and the API's version."""


class QuickDeserializer:
    """In place of pyVmomi's SoapResponseDeserializer, as far as its stub uses that."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def Deserialize(self, response: Any, result_type: Any) -> Any:
        body = response.read(LARGEST)
        if len(body) == LARGEST:
            return _Original(self._stub).Deserialize(_Rest(body, response), result_type)
        try:
            return _Reading(self._stub).answer(body, result_type)
        except Exception:
            # Whatever it was: pyVmomi meets it too, and says what it is.
            return _Original(self._stub).Deserialize(io.BytesIO(body), result_type)


class _Rest:
    """A file that begins with what was read of it already."""

    def __init__(self, begun: bytes, rest: Any) -> None:
        self._begun = begun
        self._rest = rest

    def read(self, size: int) -> bytes:
        part, self._begun = self._begun[:size], self._begun[size:]
        return part or bytes(self._rest.read(size))


class _Reading:
    """One answer."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._version = stub.version
        self._namespaces: dict[str, str] = {}
        self._known: dict[bytes, Any] = {}
        self._marked: list[bytes] = []
        """Those devices of the answer that another VM may have as well."""

    def answer(self, body: bytes, result_type: Any) -> Any:
        if _DEVICE in body and _MARK not in body:
            body = self._without_known_devices(body)
        self._namespaces = _namespaces(body)
        # The peer is verified, and expat refuses entities that grow.
        inner = ElementTree.fromstring(body).find(_BODY)  # noqa: S314
        if inner is None or len(inner) != 1 or not inner[0].tag.endswith("Response"):
            raise _UnusualError
        values = [self._value(node, result_type) for node in inner[0]]
        if issubclass(result_type, list):
            if len(values) == 1 and isinstance(values[0], list):  # a property that is a list comes as one value
                return values[0]
            return result_type(values)
        if len(values) > 1:
            raise _UnusualError
        return values[0] if values else None

    def _without_known_devices(self, body: bytes) -> bytes:
        """The answer with a mark in place of each device that is known, and a mark on each that may be from now on."""
        head, *parts = body.split(_DEVICE)
        devices = [part.partition(_DEVICE_END) for part in parts]
        rest = b"".join([head, *(after for _, _, after in devices)])
        key = tuple(sorted(_namespaces(rest).items())), self._version
        known = self._known = _devices.setdefault(key, {})
        whole = [head]
        for device, end, after in devices:
            if device in known:
                whole += [_DEVICE, b'%s="%d"/>' % (_MARK, len(self._marked)), after]
                self._marked.append(device)
            elif not end or _OF_ONE_VM.search(device):
                whole += [_DEVICE, device, end, after]
            else:
                whole += [_DEVICE, b'%s="%d" ' % (_MARK, len(self._marked)), device, end, after]
                self._marked.append(device)
        return b"".join(whole)

    def _device(self, node: Any, mark: str) -> Any:
        """Each answer has its own, of which what lies deeper is shared: nobody changes these devices."""
        device = self._marked[int(mark)]
        known = self._known.get(device)
        if known is None:
            del node.attrib[_MARK_NAME]
            known = self._value(node, _support.GetVmodlType("vim.vm.device.VirtualDevice"))
            if len(self._known) < DEVICES_KNOWN:
                self._known[device] = known
        made = known.__class__.__new__(known.__class__)
        made.__dict__.update(known.__dict__)
        return made

    def _value(self, node: Any, expected: Any) -> Any:
        if node.attrib and (mark := node.get(_MARK_NAME)) is not None:
            return self._device(node, mark)
        said = node.get(_XSI_TYPE)
        if said is None:
            key = expected, None, "", self._version
        else:
            prefix, _, name = said.rpartition(":")
            key = expected, name, self._namespaces[prefix], self._version
        kind = _kinds.get(key)
        if kind is None:
            kind = _kinds[key] = _kind(*key)
        if kind.scalar is not None:
            return kind.scalar(node.text or "")
        if kind.is_reference:
            return self._reference(node)
        if kind.is_list:
            item = kind.type.Item
            return kind.type([self._value(child, item) for child in node])
        return self._object(node, kind.type)

    def _reference(self, node: Any) -> Any:
        if "serverGuid" in node.attrib:
            raise _UnusualError
        prefix, _, name = node.attrib["type"].rpartition(":")
        return _lookup(self._namespaces[prefix], name)(node.text or "", self._stub, None)

    def _object(self, node: Any, kind: Any) -> Any:
        made = kind.__new__(kind)
        fields = made.__dict__
        if kind is _NAMED_VALUE and len(node) == 2 and node[0].tag.endswith("}name") and node[1].tag.endswith("}val"):
            plain, _ = _defaults.get(kind) or _learn(kind)
            fields.update(plain, name=_support.PropertyPath(node[0].text or ""), val=self._value(node[1], object))
            return made
        plain, lists = _defaults.get(kind) or _learn(kind)
        fields.update(plain)
        for name, make in lists:
            fields[name] = make()
        for child in node:
            key = kind, child.tag, self._version
            known = _properties.get(key) or _property(*key)
            if known.scalar is not None and not child.attrib:
                value = known.scalar(child.text or "")
            else:
                value = self._value(child, known.type)
            if known.many and not isinstance(value, list):
                fields[known.name].append(value)
            elif not known.many and type(value) is known.type:
                fields[known.name] = value
            else:
                setattr(made, known.name, value)  # which checks it
        return made


def _learn(kind: Any) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    fields = kind().__dict__
    plain = {name: value for name, value in fields.items() if not isinstance(value, list)}
    found = plain, [(name, type(value)) for name, value in fields.items() if isinstance(value, list)]
    _defaults[kind] = found
    return found


def _property(kind: Any, tag: str, version: str) -> _Property:
    info = kind._GetPropertyInfo(tag.rpartition("}")[2])
    many = issubclass(info.type, list)
    named = info.type.Item if many else info.type
    scalar = None
    if named is not object and not issubclass(named, _support.DataObject | _support.ManagedObject | list | Exception):
        scalar = _kind(info.type, None, "", version).scalar
    found = _properties[kind, tag, version] = _Property(info.name, info.type, many, scalar)
    return found


def _lookup(namespace: str, name: str) -> Any:
    return _soap.SoapDeserializer().LookupWsdlType(namespace, name, allowManagedObjectReference=True)


def _kind(expected: Any, name: str | None, namespace: str, version: str) -> _Kind:
    kind = expected
    if name is not None:
        if not _soap.isDynamicType(expected):
            said = _lookup(namespace, name)
            if not (issubclass(said, list) and issubclass(expected, list)):
                kind = said
    elif issubclass(kind, list):
        kind = kind.Item
    kind = _support.GetCompatibleType(kind, version)
    if issubclass(kind, _support.ManagedObject):
        return _Kind(kind, is_reference=True)
    if issubclass(kind, Exception) or kind is _soap.LocalizedMethodFault:
        raise _UnusualError
    if issubclass(kind, list):
        return _Kind(kind, is_list=True)
    if issubclass(kind, _support.DataObject):
        return _Kind(kind)
    return _Kind(kind, scalar=_scalar(kind))


def _scalar(kind: Any) -> Callable[[str], Any]:
    if kind is bool:
        return _bool
    if kind is _support.datetime:
        return _moment
    if issubclass(kind, _support.Enum):
        return lambda text: getattr(kind, text)
    if issubclass(kind, str | int | float):
        made: Callable[[str], Any] = kind
        return made
    raise _UnusualError


def _bool(text: str) -> bool:
    return {"0": False, "1": True, "false": False, "true": True}[text.lower()]


def _moment(text: str) -> Any:
    found = _iso.ParseISO8601(text)
    if not found:
        raise _UnusualError
    return found


def install() -> None:
    """For every session of this process."""
    _soap.SoapResponseDeserializer = QuickDeserializer
