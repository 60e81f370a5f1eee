"""A line between two machines below TCP: packets of a TUN device are delayed, held to a rate, and lost.

The kernel's own TCP is at both ends, with its congestion control, so what loss costs is what it costs; for kernels that
have no netem. One device is enough: a packet to the peer's address comes back with the two addresses exchanged (which
leaves every checksum right), so that who connects to the peer reaches a listener of this machine, over the line.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from itertools import count

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
"""Of linux/if_tun.h."""
LONGEST_PACKET = 65536
_numbers = count(os.getpid())


class TunLine:
    """Until `close`. Raises OSError where this machine or this user may have no such device."""

    def __init__(
        self,
        *,
        delay: float,
        rate: float,
        loss: float = 0.0,
        queue: float = 0.05,
        congestion: str | None = None,
        packet: int = 1500,
        seed: int = 1,
    ) -> None:
        """`delay`: seconds one way; `rate`: bytes/s of packets; `loss`: the part that is lost at random, each way.

        `queue`: seconds that a packet may wait for the line before it is dropped; `congestion`: the algorithm.
        `packet`: bytes of one, headers included: more than a network's for a line that is too fast to be carried so.
        """
        number = next(_numbers)
        network = (
            f"198.18.{number // 64 % 256}.{number % 64 * 4}"  # for measuring alone (RFC 2544), a new one each time
        )
        base, last = network.rsplit(".", 1)
        near, self.peer = f"{base}.{int(last) + 1}", f"{base}.{int(last) + 2}"
        self._device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            name = f"line{number % 10**8}"
            fcntl.ioctl(self._device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
            _ip("address", "add", near, "peer", self.peer, "dev", name)
            _ip("link", "set", name, "up", "mtu", str(packet))
            if congestion is not None:
                _ip("route", "replace", self.peer, "dev", name, "src", near, "congctl", congestion)
            arguments = json.dumps({"device": self._device, "delay": delay, "rate": rate, "loss": loss, "queue": queue})
            self._carrier = subprocess.Popen(
                [sys.executable, "-S", __file__, arguments, str(seed)], pass_fds=[self._device]
            )
        except BaseException:
            os.close(self._device)  # the device goes with its last descriptor
            raise

    def close(self) -> None:
        self._carrier.send_signal(signal.SIGKILL)
        self._carrier.wait()
        os.close(self._device)


def _ip(*arguments: str) -> None:
    program = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    if program is None:
        raise OSError("no iproute2 on this machine")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def carry(device: int, delay: float, rate: float, loss: float, queue: float, seed: int) -> None:
    """The line itself, for ever."""
    os.set_blocking(device, False)
    chance = random.Random(seed).random
    connecting: set[bytes] = set()
    ways: tuple[deque[tuple[float, bytes]], ...] = (deque(), deque())
    free_at = [0.0, 0.0]
    poll = select.poll()
    poll.register(device, select.POLLIN)
    while True:
        now = time.monotonic()
        for way in ways:
            while way and way[0][0] <= now:
                with suppress(OSError):  # the device is full, or down: one more packet is lost
                    os.write(device, way.popleft()[1])
        next_due = min((way[0][0] for way in ways if way), default=now + 1.0)
        poll.poll(max(next_due - time.monotonic(), 0.0) * 1000)
        with suppress(BlockingIOError):
            while True:
                packet = os.read(device, LONGEST_PACKET)
                if packet[0] >> 4 != 4 or packet[9] != 6:  # neither IPv4 nor TCP: nothing that was asked for
                    continue
                header = (packet[0] & 15) * 4
                ports = packet[header : header + 4]
                if packet[header + 13] & 0x12 == 0x02:  # SYN without ACK: from the end that connects
                    connecting.add(ports)
                side = ports in connecting
                now = time.monotonic()
                if free_at[side] - now > queue or chance() < loss:
                    continue
                free_at[side] = max(free_at[side], now) + len(packet) / rate
                turned = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                ways[side].append((free_at[side] + delay, turned))


if __name__ == "__main__":
    carry(**json.loads(sys.argv[1]), seed=int(sys.argv[2]))
