"""Boots the controllers' guest under QEMU and follows its console until it is gone. No part of the product.

Emulated by default: a KVM that lies would never boot it, and the kernel judges the same way in either. Two NUMA nodes
with two cores of two threads each, so that placement has something to choose from. Called by run.py.
"""

from __future__ import annotations

import select
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nimbus.host import native
from nimbus.model.errors import HostFault, Refused

QEMU = "qemu-system-x86_64"
NODE_MIB = 1536
NODES = 2
TOPOLOGY = "8,sockets=2,cores=2,threads=2"
CPU = "max,vendor=GenuineIntel"  # QEMU knows threads of one core on no AMD model without more words
MARK = b"== guest:"  # from here on the console is for people
SILENCE_S = 30  # without a word for so long, whoever waits is told that it goes on
_COMMAND_LINE = (
    "console=ttyS0 reboot=t panic=-1 quiet loglevel=1 random.trust_cpu=on cryptomgr.notests cgroup_no_v1=all "
    "mitigations=off"
)


@dataclass(frozen=True)
class Boot:
    """What is booted."""

    kernel: Path
    initramfs: Path
    disks: Mapping[str, Path]  # by the name that the guest finds them by; written to in a throw-away copy
    kept: Mapping[str, Path]  # these keep what is written to them
    accel: str
    console: Path  # where every byte that the guest says goes
    limit_s: float


def plan_command(boot: Boot, tsc_khz: int) -> list[str]:
    """Pure: QEMU's command line."""
    accel = "tcg,thread=multi" if boot.accel == "tcg" else boot.accel
    line = _COMMAND_LINE
    if boot.accel == "tcg":
        line += f" tsc_early_khz={tsc_khz}"  # or a busy host's guest may find no rate for its clock, and hang
    argv = [QEMU, "-machine", "q35", "-accel", accel, "-cpu", CPU, "-smp", TOPOLOGY, "-m", f"{NODES * NODE_MIB}M"]
    for node in range(NODES):
        argv += ["-object", f"memory-backend-ram,id=ram{node},size={NODE_MIB}M"]
        argv += ["-numa", f"node,nodeid={node},memdev=ram{node}", "-numa", f"cpu,node-id={node},socket-id={node}"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"]
    argv += ["-kernel", str(boot.kernel), "-initrd", str(boot.initramfs), "-append", line, "-serial", "stdio"]
    argv += ["-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"]
    drives = [(name, path, "on") for name, path in boot.disks.items()]
    drives += [(name, path, "off") for name, path in boot.kept.items()]
    for name, path, throw_away in drives:
        # Unsafe: a disk that a host's crash damages is made again.
        argv += ["-drive", f"if=none,id={name},file={path},format=raw,cache=unsafe,snapshot={throw_away}"]
        argv += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return argv


def run_guest(boot: Boot, show: Callable[[bytes], None], progress: Callable[[str], None]) -> None:
    """Boot, follow, return when the guest is gone. HostFault where it is not after the limit."""
    if shutil.which(QEMU) is None:
        raise Refused(f"{QEMU} is not installed: `make setup` installs it")
    argv = ["setpriv", "--pdeathsig", "KILL", *plan_command(boot, native.tsc_khz())]
    with (
        boot.console.open("wb") as log,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu,
    ):
        try:
            _follow(qemu, boot.limit_s, open_console(log.write, show), progress)
            status = qemu.wait(SILENCE_S)
        finally:
            qemu.kill()  # a dead one does not mind
    if status != 0:
        raise HostFault(f"QEMU ended with status {status}: see {boot.console}")


def open_console(log: Callable[[bytes], object], show: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """All to the log; to people what follows the mark."""
    held = bytearray()
    shown = False

    def take(data: bytes) -> None:
        nonlocal shown
        log(data)
        if shown:
            show(data)
            return
        held.extend(data)
        at = held.find(MARK)
        if at >= 0:
            shown = True
            show(bytes(held[at:]))

    return take


def _follow(
    qemu: subprocess.Popen[bytes], limit_s: float, take: Callable[[bytes], None], progress: Callable[[str], None]
) -> None:
    assert qemu.stdout is not None
    started = time.monotonic()
    while True:
        passed_s = time.monotonic() - started
        if passed_s > limit_s:
            raise HostFault(f"the guest was not done after {limit_s:.0f} s and was killed")
        readable, _, _ = select.select([qemu.stdout], [], [], SILENCE_S)
        if not readable:
            progress(f"the guest has been up for {time.monotonic() - started:.0f} s")
            continue
        data = qemu.stdout.read1(65536)  # type: ignore[attr-defined]  # a buffered reader, which Popen does not tell
        if not data:
            return
        take(data.replace(b"\r\n", b"\n"))
