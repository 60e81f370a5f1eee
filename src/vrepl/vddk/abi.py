"""libvixDiskLib's C interface on Linux x86-64: types, constants and one line per prototype. Nothing else.

Public sources that agree on it: nbdkit's `plugins/vddk/vddk-stubs.h` and `vddk-structs.h`, and Bareos' `vadp_dumper`.
`VixError` is 64 bits wide: with ctypes' default `int`, 0x100000000 would read as success.
"""

from __future__ import annotations

import ctypes as c
from typing import Any

VixError = c.c_uint64
LogFunction = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p)
"""`void(const char *format, va_list)`: on x86-64 a va_list argument is a pointer."""
CompletionFunction = c.CFUNCTYPE(None, c.c_void_p, VixError)
ProgressFunction = c.CFUNCTYPE(c.c_char, c.c_void_p, c.c_int)

VIX_OK = 0
VIX_ASYNC = 25000
"""What asynchronous calls return on success."""

OPEN_UNBUFFERED, OPEN_SINGLE_LINK, OPEN_READ_ONLY = 1, 2, 4
OPEN_COMPRESSION_ZLIB, OPEN_COMPRESSION_FASTLZ, OPEN_COMPRESSION_SKIPZ = 16, 32, 64
CREDENTIALS_UID, CREDENTIALS_SESSION_ID = 1, 2
SPEC_VMX = 0
MIN_CHUNK_SECTORS = 128
MAX_CHUNKS = 512 * 1024


class UidCredentials(c.Structure):
    _fields_ = (("user_name", c.c_char_p), ("password", c.c_char_p))


class SessionCredentials(c.Structure):
    _fields_ = (("cookie", c.c_char_p), ("user_name", c.c_char_p), ("key", c.c_char_p))


class Credentials(c.Union):
    _fields_ = (("uid", UidCredentials), ("session", SessionCredentials), ("reserved", c.c_void_p))


class ConnectParams(c.Structure):
    """VixDiskLibConnectParams, 128 bytes."""

    _fields_ = (
        ("vmx_spec", c.c_char_p),
        ("server_name", c.c_char_p),
        ("thumbprint", c.c_char_p),
        ("private_use", c.c_long),
        ("credential_type", c.c_uint32),
        ("credentials", Credentials),
        ("port", c.c_uint32),
        ("nfc_host_port", c.c_uint32),
        ("vim_api_version", c.c_char_p),
        ("reserved", c.c_char * 8),
        ("state", c.c_void_p),
        ("spec", c.c_void_p * 3),
        ("spec_type", c.c_uint32),
    )


class Geometry(c.Structure):
    _fields_ = (("cylinders", c.c_uint32), ("heads", c.c_uint32), ("sectors", c.c_uint32))


class Info(c.Structure):
    """VixDiskLibInfo; the two sector sizes only exist since VDDK 7: read them through a library that says so."""

    _fields_ = (
        ("bios_geometry", Geometry),
        ("physical_geometry", Geometry),
        ("capacity", c.c_uint64),
        ("adapter_type", c.c_uint32),
        ("links", c.c_int32),
        ("parent_file_name_hint", c.c_char_p),
        ("uuid", c.c_char_p),
        ("logical_sector_size", c.c_uint32),
        ("physical_sector_size", c.c_uint32),
    )


class Block(c.Structure):
    """Sectors."""

    _fields_ = (("offset", c.c_uint64), ("length", c.c_uint64))


class BlockList(c.Structure):
    """Followed by `count` blocks at offset 8."""

    _fields_ = (("count", c.c_uint32), ("blocks", Block * 1))


class CreateParams(c.Structure):
    _fields_ = (
        ("disk_type", c.c_uint32),
        ("adapter_type", c.c_uint32),
        ("hardware_version", c.c_uint16),
        ("capacity", c.c_uint64),
        ("logical_sector_size", c.c_uint32),
        ("physical_sector_size", c.c_uint32),
    )


_error, _handle, _connection, _text, _u32, _u64 = VixError, c.c_void_p, c.c_void_p, c.c_char_p, c.c_uint32, c.c_uint64
_params, _async = c.POINTER(ConnectParams), (c.c_void_p, _u64, _u64, c.c_void_p, CompletionFunction, c.c_void_p)

REQUIRED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "InitEx": (_error, (_u32, _u32, LogFunction, LogFunction, LogFunction, _text, _text)),
    "Exit": (None, ()),
    "GetErrorText": (c.c_void_p, (_error, _text)),
    "FreeErrorText": (None, (c.c_void_p,)),
    "FreeConnectParams": (None, (_params,)),
    "ConnectEx": (_error, (_params, c.c_char, _text, _text, c.POINTER(_connection))),
    "Disconnect": (_error, (_connection,)),
    "Open": (_error, (_connection, _text, _u32, c.POINTER(_handle))),
    "Close": (_error, (_handle,)),
    "GetTransportMode": (_text, (_handle,)),
    "GetInfo": (_error, (_handle, c.POINTER(c.POINTER(Info)))),
    "FreeInfo": (None, (c.POINTER(Info),)),
    "Read": (_error, (_handle, _u64, _u64, c.c_void_p)),
    "Write": (_error, (_handle, _u64, _u64, c.c_void_p)),
    "ReadAsync": (_error, _async),
    "WriteAsync": (_error, _async),
    "Wait": (_error, (_handle,)),
    "Flush": (_error, (_handle,)),
}
"""`VixDiskLib_<name>`: (result, arguments). In every VDDK since 6.5."""

OPTIONAL: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "AllocateConnectParams": (_params, ()),
    "QueryAllocatedBlocks": (_error, (_handle, _u64, _u64, _u64, c.POINTER(c.POINTER(BlockList)))),
    "FreeBlockList": (_error, (c.POINTER(BlockList),)),
    "PrepareForAccess": (_error, (_params, _text)),
    "EndAccess": (_error, (_params, _text)),
    "Cleanup": (_error, (_params, c.POINTER(_u32), c.POINTER(_u32))),
    "ListTransportModes": (_text, ()),
    "GetConnectParams": (_error, (_connection, c.POINTER(_params))),
    "IsAttachPossible": (_error, (_handle, _handle)),
    "Attach": (_error, (_handle, _handle)),
    "GetMetadataKeys": (_error, (_handle, c.c_char_p, c.c_size_t, c.POINTER(c.c_size_t))),
    "ReadMetadata": (_error, (_handle, _text, c.c_char_p, c.c_size_t, c.POINTER(c.c_size_t))),
    "WriteMetadata": (_error, (_handle, _text, _text)),
    "Create": (_error, (_connection, _text, c.POINTER(CreateParams), ProgressFunction, c.c_void_p)),
    "Unlink": (_error, (_connection, _text)),
    "SpaceNeededForClone": (_error, (_handle, _u32, c.POINTER(_u64))),
    "Shrink": (_error, (_handle, ProgressFunction, c.c_void_p)),
    "Defragment": (_error, (_handle, ProgressFunction, c.c_void_p)),
    "Grow": (_error, (_connection, _text, _u64, c.c_char, ProgressFunction, c.c_void_p)),
    "CheckRepair": (_error, (_connection, _text, c.c_char)),
}
"""Newer than the oldest VDDK that is supported, or not needed to replicate: absent is fine."""


def bind(library: c.CDLL, prototypes: dict[str, tuple[Any, tuple[Any, ...]]]) -> dict[str, Any]:
    """The functions that `library` has of `prototypes`, typed, by their name without the prefix."""
    found: dict[str, Any] = {}
    for name, (result, arguments) in prototypes.items():
        try:
            function = library[f"VixDiskLib_{name}"]
        except AttributeError:
            continue
        function.restype, function.argtypes = result, arguments
        found[name] = function
    return found
