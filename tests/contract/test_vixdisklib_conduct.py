"""The lab's libvixDiskLib where ESXi is not kind: what is lost, slow, refused or broken.

The library is built from its sources, served by `fake_nfc`, and used through `vddk_client`, which shares no code with
vrepl.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_nfc import GRAIN, THUMBPRINT
from tests.support.vixdisklib_lab import CRASH, ERROR, FREEZE, LOST, PATH, FakeLab, rule

# ---- the write buffer


def test_buffered_writes_are_seen_by_the_handle_and_lost_with_the_process(fake_lab: FakeLab) -> None:
    before = fake_lab.disk.content()
    process = fake_lab.start("""
        h = disk()
        h.write(0, b'\\x11' * GRAIN)
        h.flush()
        h.write(5 * GRAIN, b'\\x22' * 512)
        assert h.read(5 * GRAIN, 1024) == b'\\x22' * 512 + b'\\x06' * 512
        os.kill(os.getpid(), signal.SIGKILL)""")
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err
    assert fake_lab.disk.content() == b"\x11" * GRAIN + before[GRAIN:]
    assert fake_lab.nfc.wait_for("lingering").readonly is False


def test_the_oldest_writes_leave_the_buffer_first(fake_lab: FakeLab) -> None:
    fake_lab.set(write_buffer_bytes=2 * GRAIN)
    fake_lab.run("h = disk()\nfor g in (9, 8, 7, 6): h.write(g * GRAIN, b'\\x99' * GRAIN)\nos._exit(0)")
    content = fake_lab.disk.content()
    assert [content[g * GRAIN] for g in (9, 8, 7, 6)] == [0x99, 0x99, 8, 7]


def test_a_write_that_fails_leaves_the_grain_as_it_was(fake_lab: FakeLab) -> None:
    """The file may hold part of its bytes by then; nobody must see them, even after a later write to the same grain."""
    before = fake_lab.disk.content()
    fake_lab.run("""
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        h = disk()
        old = h.read(4 * GRAIN, 2 * GRAIN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 * GRAIN + 4096, resource.RLIM_INFINITY))
        failed = code_of(lambda: h.write(4 * GRAIN, b'\x44' * (2 * GRAIN)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert failed, failed
        assert h.read(4 * GRAIN, 2 * GRAIN) == old
        h.write(5 * GRAIN + 512, b'\x55' * 512)
        h.close()""")
    start = 5 * GRAIN + 512
    assert fake_lab.disk.content() == before[:start] + b"\x55" * 512 + before[start + 512 :]


def test_close_writes_the_buffer_and_releases_the_lock(fake_lab: FakeLab) -> None:
    fake_lab.run("""
        h = disk()
        h.write(0, b'\\x31' * 512)
        h.close()""")
    assert fake_lab.nfc.wait_for("released").path == PATH
    assert fake_lab.disk.content()[:512] == b"\x31" * 512


def test_one_writer_or_many_readers(fake_lab: FakeLab) -> None:
    out = fake_lab.run("""
        first = disk(4)
        second = disk(4)
        refused = code_of(disk)
        busy = int(lib.c.VixDiskLib_Disconnect(connection))
        first.close(); second.close()
        nothing = int(lib.c.VixDiskLib_Disconnect(c.c_void_p(0)))
        answer([refused, busy, code_of(disk), nothing])""")
    assert out == [15, 5, 0, 1000]


# ---- latency and bandwidth


TIMED_READS = """
    h = disk(4)
    pages = [buffer(GRAIN) for _ in range(8)]
    start = time.monotonic()
    for page in pages:
        h.start(False, 0, page)
    h.wait()
    answer(time.monotonic() - start)"""


@pytest.mark.parametrize(
    ("values", "least_s"),
    [
        ({"latency_us": 50_000}, 0.1),
        ({"bandwidth_bytes_s": 40 * GRAIN}, 0.2),
        ({"latency_us": 50_000, "bandwidth_bytes_s": 40 * GRAIN}, 0.25),
    ],
)
def test_latency_and_bandwidth_take_their_time(fake_lab: FakeLab, values: dict[str, int], least_s: float) -> None:
    """8 calls of one NFC buffer, 4 of which are in flight at a time: two rounds of latency, or 8 grains in a row."""
    fake_lab.set(**values)
    assert fake_lab.run(TIMED_READS) >= least_s


def test_synchronous_calls_pay_the_latency_each(fake_lab: FakeLab) -> None:
    fake_lab.set(latency_us=50_000)
    assert (
        fake_lab.run(
            """
        h = disk(4)
        t = time.monotonic()
        h.read(0, 1 << 20)
        h.read(0, 512)
        answer(time.monotonic() - t)"""
        )
        >= 0.1
    )


def test_settings_reach_an_open_handle(fake_lab: FakeLab) -> None:
    process = fake_lab.start(
        """
        h = disk()
        answer('open')
        while open(s['settings'], 'rb').read()[16] == 0:
            time.sleep(0.01)
        start = time.monotonic()
        h.read(0, 512)
        answer(time.monotonic() - start)""",
        settings=str(fake_lab.folder / "settings.bin"),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == '"open"\n'
    fake_lab.set(latency_us=200_001)
    out, err = process.communicate(timeout=60)
    assert float(out) >= 0.2, err


# ---- faults


def test_an_error_at_the_nth_call(fake_lab: FakeLab) -> None:
    fake_lab.set((rule("read", ERROR, 14010, first=3, count=2),))
    assert fake_lab.run("""
        h = disk(4)
        answer([code_of(h.read, 0, 512) for _ in range(6)])""") == [
        0,
        0,
        14010,
        14010,
        0,
        0,
    ]
    assert fake_lab.seen() == 6
    assert (
        fake_lab.run("""
        h = disk(4)
        answer(code_of(h.read, 0, 512))""")
        == 0
    )
    assert fake_lab.seen() == 7, "calls are counted across processes"


@pytest.mark.parametrize(
    ("vm", "mode", "code"), [("vm", "", 13), ("other", "", 0), ("", "nbdssl", 13), ("vm", "san", 0)]
)
def test_fault_filters(fake_lab: FakeLab, vm: str, mode: str, code: int) -> None:
    fake_lab.set((rule("write", ERROR, 13, count=0, vm=vm, mode=mode),))
    assert (
        fake_lab.run("""
        h = disk()
        answer(code_of(h.write, 0, bytes(512)))""")
        == code
    )


def test_an_asynchronous_error_comes_by_callback(fake_lab: FakeLab) -> None:
    fake_lab.set((rule("write", ERROR, 16064, first=2),))
    out = fake_lab.run("""
        h = disk()
        calls = [h.start(True, g * GRAIN, buffer(GRAIN)) for g in range(3)]
        h.wait()
        answer([done[0][0] for done in calls])""")
    assert out == [0, 16064, 0]


@pytest.mark.parametrize("op", ["open", "flush", "close", "query", "connect", "prepare"])
def test_faults_of_other_calls(fake_lab: FakeLab, op: str) -> None:
    fake_lab.set((rule(op, ERROR, 14010, count=0),))
    out = fake_lab.run(
        """
        def work():
            global params
            conn = lib.connect(params)
            h = lib.open(conn, s['path'])
            h.write(0, b'\\x01' * 512)
            if s['op'] == 'query':
                h.allocated(0, 128, 128)
            h.flush()
            h.close()
            check(lib.c.VixDiskLib_PrepareForAccess(c.byref(params), b'id'))
        answer(code_of(work))""",
        connect=False,
        op=op,
    )
    assert out == 14010


def test_a_freeze_goes_on_afterwards(fake_lab: FakeLab) -> None:
    fake_lab.set((rule("read", FREEZE, param=200),))
    assert fake_lab.run("h = disk()\nt = time.monotonic()\nh.read(0, 512)\nanswer(time.monotonic() - t)") >= 0.2


def test_a_crash_takes_the_process_and_leaves_the_lock(fake_lab: FakeLab) -> None:
    fake_lab.set((rule("write", CRASH, first=2),))
    process = fake_lab.start("""
        h = disk()
        for g in range(9): h.write(g * GRAIN, bytes(512))""")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGSEGV
    assert fake_lab.nfc.wait_for("lingering").path == PATH


def test_a_lost_connection_stays_lost(fake_lab: FakeLab) -> None:
    before = fake_lab.disk.content()
    fake_lab.set((rule("write", LOST, first=2),))
    out = fake_lab.run("""
        h = disk()
        codes = [code_of(h.write, 0, b'\\x01' * 512) for _ in range(3)]
        codes.append(code_of(h.read, 0, 512))
        answer(codes + [code_of(call) for call in (h.flush, h.info, h.wait, h.close)])""")
    assert out == [0] + [14011] * 7
    assert fake_lab.disk.content() == before, "what was buffered never reached the host"
    assert fake_lab.nfc.wait_for("lingering").path == PATH


def test_a_site_that_dies_is_a_lost_connection(fake_lab: FakeLab) -> None:
    process = fake_lab.start("""
        h = disk()
        answer('open')
        until = time.monotonic() + 30
        while (code := code_of(h.read, 0, 512)) == 0 and time.monotonic() < until:
            time.sleep(0.01)
        answer([code, code_of(h.close)])""")
    assert process.stdout is not None
    assert process.stdout.readline() == '"open"\n'
    fake_lab.nfc.close()
    out, err = process.communicate(timeout=60)
    assert json.loads(out) == [14011, 14011], err


# ---- connecting


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"server": "nowhere"}, 18000),
        ({"port": 444}, 18000),
        ({"password": "wrong"}, 3014),
        ({"session": True}, 0),
        ({"thumbprint": THUMBPRINT.lower().replace(":", "")}, 0),
        ({"thumbprint": THUMBPRINT[:-1] + "0"}, 1),
        ({"thumbprint": ""}, 1),
        ({"nfc_port": 1}, 14009),
        ({"path": "[ds] nothing.vmdk"}, 4),
    ],
)
def test_what_stands_between_a_client_and_its_disk(fake_lab: FakeLab, change: dict[str, Any], code: int) -> None:
    out = fake_lab.run(
        """
        path = s['change'].pop('path', s['path'])
        change = {'thumbprint': s['thumbprint']} | s['change']
        answer(code_of(lambda: lib.open(lib.connect(lib.params(**change)), path)))""",
        change=change,
        connect=False,
    )
    assert out == code


def test_a_wrong_thumbprint_is_noticed_late(fake_lab: FakeLab) -> None:
    assert (
        fake_lab.run(
            """
        conn = lib.connect(lib.params('00:11'))
        answer(code_of(lib.open, conn, s['path']))""",
            connect=False,
        )
        == 1
    )


def test_a_refused_nfc_port(fake_lab: FakeLab) -> None:
    fake_lab.nfc.close_nfc()
    assert fake_lab.run("answer(code_of(disk))") == 14009


def test_a_host_without_nfc_memory(fake_lab: FakeLab) -> None:
    fake_lab.nfc.nfc_limit_kib = 300
    code, warnings = fake_lab.run("first = disk(4)\nanswer([code_of(disk, 4), lib.warnings()])")
    assert code == 2
    assert "NFC error 5" in warnings


@pytest.mark.parametrize(("flags", "code"), [(16, 0), (4 | 1 | 64, 0), (16 | 32, 3), (8, 3), (128, 3)])
def test_open_flags(fake_lab: FakeLab, flags: int, code: int) -> None:
    assert fake_lab.run(f"answer(code_of(disk, {flags}))") == code


def test_what_the_site_is_told(fake_lab: FakeLab) -> None:
    fake_lab.run(
        """
        seven = lib.params(s['thumbprint'], moref='vm-7')
        conn = lib.connect(seven, read_only=True, snapshot='snapshot-3', modes='hotadd:nbdssl')
        lib.open(conn, s['path'], 2).close()
        identity = lib.params(s['thumbprint'], moref='vm-8')
        done = (c.c_uint32(), c.c_uint32())
        codes = [int(lib.c.VixDiskLib_PrepareForAccess(c.byref(identity), b'i' * n)) for n in (50, 51)]
        codes.append(int(lib.c.VixDiskLib_EndAccess(c.byref(identity), b'i' * 50)))
        codes.append(int(lib.c.VixDiskLib_Cleanup(c.byref(identity), c.byref(done[0]), c.byref(done[1]))))
        assert codes == [0, 3, 0, 0] and done[0].value == 1, codes""",
        connect=False,
    )
    sent = {request["op"]: request for request in fake_lab.nfc.requests}
    assert sent["open"].items() >= {"proxy": "p1", "moref": "vm-7", "snapshot": "snapshot-3", "path": PATH}.items()
    assert (
        sent["open"].items()
        >= {"readonly": "1", "single_link": "1", "modes": "hotadd:nbdssl", "nfc_kib": "256"}.items()
    )
    assert sent["connect"].items() >= {"moref": "vm-7", "readonly": "1", "user": "user"}.items()
    assert sent["prepare"].items() >= {"moref": "vm-8", "identity": "i" * 50}.items()
    assert "endaccess" in sent


def test_open_and_close_at_the_same_time_is_pointed_out(fake_lab: FakeLab) -> None:
    fake_lab.nfc.open_delay_s = 0.5
    warnings = fake_lab.run("""
        threads = [threading.Thread(target=disk, args=(4,)) for _ in range(2)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        answer(lib.warnings())""")
    assert "must serialise them" in warnings


# ---- what may not share a process with it


def dies(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGABRT, (process.returncode, err)
    return err


def test_refuses_a_process_with_a_foreign_openssl(fake_lab: FakeLab) -> None:
    assert "a foreign OpenSSL is mapped" in dies(
        fake_lab.start(
            """
        import ssl
        lib.init(8, 0)""",
            init=False,
        )
    )


def test_breaks_after_a_fork(fake_lab: FakeLab) -> None:
    out = fake_lab.run("""
        pid = os.fork()
        if pid == 0:
            lib.connect(params)
            os._exit(0)
        answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))""")
    assert out == -signal.SIGABRT


@pytest.mark.parametrize("module", ["ssl", "hashlib"])
def test_the_poisoned_libcrypto_kills_who_loads_it(vddk_folder: Path, module: str) -> None:
    loads = "any('libcrypto' in line for line in open('/proc/self/maps'))"
    here = subprocess.run(
        [sys.executable, "-I", "-c", f"import {module}; print({loads})"], capture_output=True, text=True, check=True
    )
    if here.stdout != "True\n":
        pytest.skip("this Python has no shared libcrypto")
    process = subprocess.Popen(
        [sys.executable, "-c", f"import {module}"],
        env={"LD_LIBRARY_PATH": str(vddk_folder)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "LD_LIBRARY_PATH points to VDDK" in dies(process)
