"""The lab's libvixDiskLib: the ABI, reading and writing chains of links, what is allocated.

The library is built from its sources, served by `fake_nfc`, and used through `vddk_client`, which shares no code with
vrepl.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_nfc import GRAIN, Disk
from tests.support.vixdisklib_lab import MIB, READ_ONLY, SINGLE_LINK, FakeLab, compile_library, compilers

# ---- building


@pytest.mark.parametrize("name", ["gcc", "clang", "zig"])
def test_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    found = compilers()
    if name not in found:
        pytest.skip(f"{name} is not here")
    compile_library(found[name], tmp_path)
    assert (tmp_path / "libvixDiskLib.so.8").exists()


# ---- the ABI


def test_says_what_the_disk_is(fake_lab: FakeLab) -> None:
    info = fake_lab.run("""
        h = disk()
        answer([h.info(), h.mode()])""")
    expected = {"capacity": 2049, "adapter": 3, "links": 3, "parent": "vm-000001.vmdk", "logical": 512, "physical": 512}
    assert info == [expected | {"uuid": "6000C290-0000-0000-0000-000000000001"}, "nbdssl"]


def test_error_text_is_the_callers_to_free(fake_lab: FakeLab) -> None:
    text = fake_lab.run("""
        texts = []
        for code in (1, 13, 14009, 18000, 0x100000003, 4242):
            at = lib.c.VixDiskLib_GetErrorText(c.c_uint64(code), None)
            texts.append(c.string_at(at).decode())
            lib.c.VixDiskLib_FreeErrorText(c.c_void_p(at))
        answer(texts)""")
    assert text == ["Unknown error", "You do not have access rights to this file", "The server refused connection",
                    "Cannot connect to host", "One of the parameters was invalid", "Unknown error 4242"]  # fmt: skip


@pytest.mark.parametrize(("major", "code"), [(4, 6), (5, 0), (6, 0), (8, 0), (9, 6), (10, 6)])
def test_versions(fake_lab: FakeLab, major: int, code: int) -> None:
    assert fake_lab.run(f"answer(lib.init({major}, 0))", init=False) == code


def test_an_older_release_under_the_same_name(fake_lab: FakeLab) -> None:
    """libvixDiskLib.so.6 may be of VDDK 6.7 or of 6.5."""
    conf = fake_lab.folder / "lib64/lab.conf"
    conf.write_text(conf.read_text() + "version 6.5\n")
    assert fake_lab.run("answer([lib.init(8, 0), lib.init(6, 7), lib.init(6, 5)])", init=False) == [6, 6, 0]


def test_it_chats_about_phoning_home_at_warning_level(fake_lab: FakeLab) -> None:
    assert "CEIP" in fake_lab.run("answer(lib.warnings())")


def test_init_only_once(fake_lab: FakeLab) -> None:
    assert fake_lab.run("answer([lib.init(8, 0), lib.warnings()])")[0] == 1


def test_nothing_works_before_init(fake_lab: FakeLab) -> None:
    assert fake_lab.run("answer(code_of(lib.connect, params))", init=False) == 16001


def test_logs_from_its_own_thread_too(fake_lab: FakeLab) -> None:
    (fake_lab.folder / "config").write_text(
        "# comment\nvixDiskLib.transport.LogLevel=6\ntmpDirectory=/tmp\nnonsense=1\n"
    )
    lines = fake_lab.run(
        """
        while not any("background thread" in text for _, text in lib.lines):
            time.sleep(0.01)
        answer(lib.lines)""",
        config=str(fake_lab.folder / "config"),
    )
    assert ["warn", "VixDiskLib: config: unknown key nonsense"] in lines


# ---- reading and writing


def test_a_read_resolves_the_chain(fake_lab: FakeLab) -> None:
    data = bytes.fromhex(
        fake_lab.run("""
        h = disk(4)
        answer(h.read(0, h.info()['capacity'] * 512).hex())""")
    )
    assert data == fake_lab.disk.content()
    grains = [data[g * GRAIN] for g in range(17)]
    assert grains == [1, 0xB1, 0, 0xC3, 0, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0xEE]


def test_single_link_reads_only_the_leaf(fake_lab: FakeLab) -> None:
    data = fake_lab.run(
        f"""
        h = disk({READ_ONLY | SINGLE_LINK})
        answer([h.read(g * GRAIN, 512)[0] for g in range(16)] + [h.info()['links']])"""
    )
    assert data == [0, 0, 0, 0xC3] + [0] * 12 + [1]


@pytest.mark.parametrize(("grain", "under"), [(0, b"\x01"), (1, b"\xb1"), (2, b"\0"), (4, b"\0"), (9, b"\0")])
def test_a_partial_grain_is_copied_up(fake_lab: FakeLab, grain: int, under: bytes) -> None:
    parents = [fake_lab.disk.flat(link).read_bytes() for link in (1, 2)]
    fake_lab.run(f"""
        h = disk()
        h.write({grain * GRAIN + 1024}, b'\\x77' * 1536)
        h.close()""")
    expected = under * 1024 + b"\x77" * 1536 + under * (GRAIN - 2560)
    assert fake_lab.disk.flat().read_bytes()[grain * GRAIN : (grain + 1) * GRAIN] == expected
    assert fake_lab.disk.grains()[grain] == 1
    assert [fake_lab.disk.flat(link).read_bytes() for link in (1, 2)] == parents
    assert fake_lab.disk.last_changes() == [7 if g == grain else 0 for g in range(17)]


def test_a_short_last_grain_and_a_write_across_grains(fake_lab: FakeLab) -> None:
    before = fake_lab.disk.content()
    fake_lab.run("""
        h = disk()
        h.write(15 * GRAIN + 512, b'\\x55' * GRAIN)
        h.close()""")
    at = 15 * GRAIN + 512
    assert fake_lab.disk.content() == before[:at] + b"\x55" * GRAIN + before[at + GRAIN :]
    assert fake_lab.disk.grains()[15:] == b"\1\1"


def test_written_zeros_are_allocated(fake_lab: FakeLab) -> None:
    fake_lab.run("""
        h = disk()
        h.write(10 * GRAIN, bytes(GRAIN))
        h.close()""")
    assert fake_lab.disk.grains()[10] == 1


@pytest.mark.parametrize("write_buffer", [0, 512, 100_000, 4 * MIB])
@pytest.mark.parametrize("mode", ["nbdssl", "hotadd"])
def test_random_io_matches_a_model(fake_lab: FakeLab, write_buffer: int, mode: str) -> None:
    """Overlapping writes, reads in between and flushes, against a bytearray; then the files against it."""
    fake_lab.set(write_buffer_bytes=write_buffer)
    fake_lab.disk.mode = mode
    before = fake_lab.disk.content()
    choices = random.Random(write_buffer)
    steps: list[tuple[str, int, int]] = []
    for _ in range(300):
        start = choices.randrange(2049)
        count = min(choices.choice([1, 3, 8, 100, 700, 1200]), 2049 - start)
        steps.append((choices.choices(["w", "r", "f"], [6, 3, 1])[0], start, count))
    final = fake_lab.run(
        """
        h = disk()
        model = bytearray(bytes.fromhex(s['before']))
        for n, (kind, start, count) in enumerate(s['steps']):
            at, size = start * 512, count * 512
            if kind == 'w':
                data = n.to_bytes(2, 'little') * (size // 2)
                h.write(at, data)
                model[at:at + size] = data
            elif kind == 'r':
                assert h.read(at, size) == model[at:at + size], (n, start, count)
            else:
                h.flush()
        h.close()
        answer(model.hex())""",
        before=before.hex(),
        steps=steps,
    )
    assert fake_lab.disk.content() == bytes.fromhex(final)


@pytest.mark.parametrize(("mode", "other_thread"), [("nbdssl", True), ("nbd", True), ("hotadd", False), ("san", False)])
def test_asynchronous_io(fake_lab: FakeLab, mode: str, other_thread: bool) -> None:
    """Real over nbd and nbdssl only: elsewhere the callback has come before the call returns."""
    fake_lab.disk.mode = mode
    before = fake_lab.disk.content()
    out = fake_lab.run("""
        h = disk()
        at_once, codes, threads, pages = 0, set(), set(), []
        for write in (True, False):
            calls = []
            for g in range(8):
                pages.append(buffer(bytes([0x80 + g]) * GRAIN if write else GRAIN))
                calls.append(h.start(write, g * GRAIN, pages[-1]))
                at_once += len(calls[-1])
            h.wait()
            codes |= {code for done in calls for code, _ in done}
            threads |= {thread for done in calls for _, thread in done}
            assert all(len(done) == 1 for done in calls)
        ok = all(pages[8 + g][:] == bytes([0x80 + g]) * GRAIN for g in range(8))
        h.close()
        answer([sorted(codes), ok, at_once, threading.get_native_id() in threads])""")
    assert out[:2] == [[0], True]
    assert out[3] is not other_thread
    if not other_thread:
        assert out[2] == 16
    assert fake_lab.disk.content() == b"".join(bytes([0x80 + g]) * GRAIN for g in range(8)) + before[8 * GRAIN :]


@pytest.mark.parametrize(
    "config", ["", "vixDiskLib.nfcAio.Session.BufSizeIn64KB=4\nvixDiskLib.nfcAio.Session.BufCount=2\n"]
)
def test_a_call_larger_than_an_nfc_buffer(fake_lab: FakeLab, config: str) -> None:
    (fake_lab.folder / "config").write_text(config)
    fake_lab.run(
        """
        h = disk()
        data = bytes(range(256)) * 4096
        calls = [h.start(True, 512, buffer(data))]
        h.wait()
        got = buffer(len(data))
        calls.append(h.start(False, 512, got))
        h.close()
        assert got[:] == data and [done[0][0] for done in calls] == [0, 0]""",
        config=str(fake_lab.folder / "config"),
    )
    assert fake_lab.disk.content()[512:] == bytes(range(256)) * 4096
    attach = next(request for request in fake_lab.nfc.requests if request["op"] == "attach")
    assert attach["nfc_kib"] == ("512" if config else "256")


def test_close_waits_for_what_is_outstanding(fake_lab: FakeLab) -> None:
    fake_lab.set(latency_us=100_000)
    assert fake_lab.run("h = disk()\nd = h.start(True, 0, buffer(b'\\x44' * GRAIN))\nh.close()\nanswer(d[0][0])") == 0
    assert fake_lab.disk.content()[:GRAIN] == b"\x44" * GRAIN


@pytest.mark.parametrize("asynchronous_first", [True, False])
def test_mixing_io_kinds_on_a_handle(fake_lab: FakeLab, asynchronous_first: bool) -> None:
    out = fake_lab.run(
        """
        h = disk()
        two = [lambda: h.start(False, 0, buffer(512)), lambda: h.read(0, 512)]
        if not s['first']:
            two.reverse()
        two[0]()
        h.wait()
        answer([code_of(two[1]), code_of(h.flush)])""",
        first=asynchronous_first,
    )
    assert out == [26000, 0]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("h.read(2048 * 512, 1024)", 16007),
        ("h.read(2049 * 512, 512)", 16007),
        ("h.read(0, 512 * 2050)", 16007),
        ("h.write(0, bytes(512))", 11),
        ("h.read((1 << 63), 512)", 16007),
    ],
)
def test_bad_calls_on_a_read_only_handle(fake_lab: FakeLab, call: str, code: int) -> None:
    assert (
        fake_lab.run(f"""
        h = disk(4)
        answer(code_of(lambda: {call}))""")
        == code
    )


def test_one_line_about_unaligned_buffers(fake_lab: FakeLab) -> None:
    lines = fake_lab.run("""
        h = disk(4)
        keep = buffer(8192)
        at = c.c_void_p(pointer(keep).value + 8)
        for _ in range(3):
            check(lib.c.VixDiskLib_Read(h.handle, c.c_uint64(0), c.c_uint64(1), at))
        answer([text for _, text in lib.lines if 'aligned' in text])""")
    assert len(lines) == 1


# ---- what is allocated


@pytest.mark.parametrize(
    ("start", "count", "chunk", "expected"),
    [
        (0, 2048, 128, [[0, 256], [384, 128], [640, 384]]),
        (0, 2048, 256, [[0, 512], [512, 512]]),
        (0, 2048, 2048, [[0, 2048]]),
        (1024, 1024, 128, []),
        (0, 2048, 127, 3),
        (0, 2000, 128, 3),
        (0, 2049, 128, 3),
        (1921, 128, 128, [[1921, 128]]),
        (1922, 128, 128, 3),
        (0, 0, 128, 3),
    ],
)
def test_query_allocated_blocks(fake_lab: FakeLab, start: int, count: int, chunk: int, expected: Any) -> None:
    out = fake_lab.run(f"""
        h = disk(4)
        try:
            answer(h.allocated({start}, {count}, {chunk}))
        except VixError as error:
            answer(error.code)""")
    if isinstance(expected, list):
        out = merged(out)
        expected = merged(expected)
    assert out == expected


def merged(blocks: list[list[int]]) -> list[list[int]]:
    out: list[list[int]] = []
    for offset, length in blocks:
        if out and sum(out[-1]) == offset:
            out[-1][1] += length
        else:
            out.append([offset, length])
    return out


def test_query_knows_what_is_still_buffered(fake_lab: FakeLab) -> None:
    out = fake_lab.run("h = disk()\nh.write(12 * GRAIN, bytes(512))\nanswer(h.allocated(8 * 128, 8 * 128, 128))")
    assert out == [[12 * 128, 128]]


@pytest.mark.parametrize(("supported", "here", "elsewhere"), [(0, 6, 6), (1, 0, 1), (2, 0, 0)])
def test_query_on_which_thread(fake_lab: FakeLab, supported: int, here: int, elsewhere: int) -> None:
    fake_lab.set(allocated_supported=supported)
    out = fake_lab.run("""
        h = disk(4)
        codes = [code_of(h.allocated, 0, 128, 128)]
        thread = threading.Thread(target=lambda: codes.append(code_of(h.allocated, 0, 128, 128)))
        thread.start()
        thread.join()
        answer(codes)""")
    assert out == [here, elsewhere]


def test_a_sparse_tebibyte_costs_little_memory(fake_lab: FakeLab) -> None:
    capacity = 1 << 40
    fake_lab.nfc.disks["[ds] big.vmdk"] = Disk(capacity, [fake_lab.folder / "big"])
    with (
        (fake_lab.folder / "big-flat.vmdk").open("wb") as flat,
        (fake_lab.folder / "big-grains.map").open("wb") as grains,
    ):
        flat.truncate(capacity)
        grains.truncate(capacity // GRAIN)
        grains.seek(999_999)
        grains.write(b"\1")
    found, peak_kib = fake_lab.run("""
        h = lib.open(connection, '[ds] big.vmdk', 4)
        step = 512 * 1024 * 128
        found = [block for at in range(0, 1 << 31, step) for block in h.allocated(at, step, 128)]
        h.read(999_999 * GRAIN, GRAIN)
        answer([found, int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])])""")
    assert found == [[999_999 * 128, 128]]
    assert peak_kib < 80 * 1024
    assert (
        fake_lab.run(
            """
        h = lib.open(connection, '[ds] big.vmdk', 4)
        answer(code_of(h.allocated, 0, (512 * 1024 + 1) * 128, 128))"""
        )
        == 3
    )
