"""Disk images for the lab's guests: real ext4 file systems with files in them, made by mke2fs.

A whole disk is one file system (no partition table), so that an export of it can go straight to e2fsck.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from vrepl_lab.errors import LabError
from vrepl_lab.spec import MIB, DiskSpec, SiteSpec, VmSpec, stable_uuid

GRAIN = 64 * 1024
FILE_SIZE = 8 * MIB
JOURNAL_FROM = 64 * MIB
"""File systems below this size get no journal: it would take too large a share of them."""
TOOL_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin")


def find_tool(name: str) -> str:
    """A tool of e2fsprogs; its folder is not always on a user's PATH."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *TOOL_FOLDERS))
    found = shutil.which(name, path=path)
    if found is None:
        raise LabError(
            f"{name} was not found (looked on PATH and in {', '.join(TOOL_FOLDERS)}): "
            "the lab's guests hold ext4 file systems",
            hint="install e2fsprogs with the machine's packages (apt, dnf, zypper or apk: e2fsprogs)",
        )
    return found


def random_bytes(seed: str, length: int, offset: int = 0) -> bytes:
    """Bytes `offset … offset + length` of an endless stream that `seed` decides (AES-128 in counter mode)."""
    if offset % 16:
        start = offset - offset % 16
        return random_bytes(seed, length + offset - start, start)[offset - start :]
    key = hashlib.sha256(seed.encode()).digest()[:16]
    stream = Cipher(algorithms.AES128(key), modes.CTR((offset // 16).to_bytes(16, "big"))).encryptor()
    return stream.update(bytes(length))


def random_pieces(seed: str, length: int, piece: int = MIB) -> Iterator[bytes]:
    for offset in range(0, length, piece):
        yield random_bytes(seed, min(piece, length - offset), offset)


def make_images(site: str, spec: SiteSpec, folder: Path, seed: str) -> dict[tuple[str, int], Path]:
    """Raw images of all disks of a site that are not empty, by (folder and name of the VM, disk index)."""
    wanted = [
        (vm, index, disk)
        for vm in spec.vms
        for index, disk in enumerate(vm.disks)
        if disk.content != "empty" and disk.rdm is None
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        made = pool.map(lambda item: make_image(site, item[0], item[1], item[2], folder, seed), wanted)
        return {(vm.place, index): path for (vm, index, _), path in zip(wanted, made, strict=True)}


def make_image(site: str, vm: VmSpec, index: int, disk: DiskSpec, folder: Path, seed: str) -> Path:
    image = folder / f"{quote(vm.place, safe=' ')}-{index}.img"
    name = f"{seed}/{site}/{vm.place}/{index}"
    if disk.content == "ext4":
        make_file_system(image, vm, disk, name)
    else:
        make_random(image, disk, name)
    return image


def make_random(image: Path, disk: DiskSpec, seed: str) -> None:
    """Random grains spread evenly over the disk; the others stay holes. The last, maybe short, grain is filled."""
    grains = -(-disk.capacity // GRAIN)
    with image.open("wb") as file:
        file.truncate(disk.capacity)
        filled = 0
        for grain in range(grains):
            if filled < disk.fill * (grain + 1) or grain == grains - 1:
                offset = grain * GRAIN
                file.seek(offset)
                file.write(random_bytes(seed, min(GRAIN, disk.capacity - offset), offset))
                filled += 1


def make_file_system(image: Path, vm: VmSpec, disk: DiskSpec, seed: str) -> None:
    with tempfile.TemporaryDirectory(prefix="files-", dir=image.parent) as temporary:
        root = Path(temporary)
        write_files(root, vm, int(disk.capacity * disk.fill), seed)
        command = [find_tool("mke2fs"), "-q", "-F", "-t", "ext4", "-b", "4096", "-i", "65536", "-m", "0"]
        command += ["-U", stable_uuid(seed, "fs"), "-L", vm.name[:16]]
        command += ["-E", f"root_owner=0:0,lazy_itable_init=0,nodiscard,hash_seed={stable_uuid(seed, 'hash')}"]
        if disk.capacity >= JOURNAL_FROM:
            command += ["-O", "^resize_inode", "-J", "size=4"]
        else:
            command += ["-O", "^resize_inode,^has_journal"]
        command += ["-d", str(root), str(image), f"{disk.capacity // 1024}k"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"making the disk image of {vm.name} failed: {' '.join(command)}\n{done.stderr.strip()}")
    with image.open("r+b") as file:
        file.truncate(disk.capacity)
        write_zeros_in_holes(file.fileno(), disk.capacity, disk.zeroed)


def write_files(root: Path, vm: VmSpec, data: int, seed: str) -> None:
    """A small /etc and /var/log, and `data` bytes of incompressible files in /srv."""
    for folder in ("etc", "var/log", "srv/data"):
        (root / folder).mkdir(parents=True)
    (root / "etc/hostname").write_text(f"{vm.name}\n")
    (root / "etc/os-release").write_text('ID=vrepl-lab\nPRETTY_NAME="A guest of the vrepl lab"\n')
    lines = (f"{number:06} {vm.name} service started\n" for number in range(500))
    (root / "var/log/messages").write_text("".join(lines))
    for number, offset in enumerate(range(0, data, FILE_SIZE)):
        with (root / "srv/data" / f"file-{number:04}.bin").open("wb") as file:
            for piece in random_pieces(f"{seed}/{number}", min(FILE_SIZE, data - offset)):
                file.write(piece)


def write_zeros_in_holes(descriptor: int, capacity: int, length: int) -> None:
    """Allocate up to `length` bytes of zeros where the image has holes, whole grains, from the end of the disk down."""
    grain = capacity // GRAIN - 1
    while length > 0 and grain > 0:
        offset = grain * GRAIN
        if next_data(descriptor, offset, capacity) >= offset + GRAIN:
            os.pwrite(descriptor, bytes(GRAIN), offset)
            length -= GRAIN
        grain -= 1


def next_data(descriptor: int, offset: int, capacity: int) -> int:
    """Where the next written byte stands, from `offset` on; the capacity if there is none."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError:
        return capacity
