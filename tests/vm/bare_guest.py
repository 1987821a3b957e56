"""A guest under a bare QEMU: no agent, no keeper, no jail, nothing but nimbus-init in a real kernel and its link."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import TypedDict, Unpack

import trio

from nimbus.host import native
from nimbus.host_agent.guest import GuestSession
from nimbus.model.vm import Command, NetPlan
from nimbus.storage.content import ImageStore
from nimbus.storage.images import Image, resolve_image
from nimbus.storage.overlays import overlay_template
from tests.guests import count_boots
from tests.hosts import BUILT_IMAGES

OVERLAY_MIB = 64
MEM_MIB = 128
# What the guest is told; the tests look for it in the guest. The rest of the plan never leaves the host.
NET = NetPlan(
    name="nbabc-00000000",
    tap="nimbus0",
    peer="peer",
    uplink_host=IPv4Interface("172.30.0.1/30"),
    uplink_peer=IPv4Interface("172.30.0.2/30"),
    gateway=IPv4Interface("172.16.0.1/30"),
    guest=IPv4Interface("172.16.0.2/30"),
    mac="02:fc:00:00:00:05",
    tap_uid=0,
    tap_gid=0,
    subnet=IPv4Network("172.30.0.0/16"),
    nameserver=IPv4Address("9.9.9.9"),
)


class Differences(TypedDict, total=False):
    """What one test's guest has otherwise than the others."""

    network: bool
    initramfs: Path
    port: str  # the name of its one virtio port
    console: Path  # else the test's own output
    more: Sequence[str]  # for QEMU


@dataclass
class BareGuest:
    """A running QEMU and the way to its guest's link."""

    link: Path
    process: trio.Process

    async def connect(self) -> trio.abc.Stream:
        return await trio.open_unix_socket(str(self.link))


def new_session(command: Command) -> GuestSession:
    return GuestSession(secrets.token_bytes(16), command, NET)


@asynccontextmanager
async def open_bare_guest(folder: Path, **differences: Unpack[Differences]) -> AsyncIterator[BareGuest]:
    """The guest while the block runs; killed when it has not gone by itself."""
    store = ImageStore(BUILT_IMAGES)
    overlay = folder / "overlay.img"
    if not overlay.exists():  # a restored guest brings its own
        shutil.copyfile(overlay_template(store, OVERLAY_MIB), overlay)
    link = folder / "link.sock"
    image = resolve_image(store, "base")
    argv = _argv(image, overlay, link, differences)
    # The console goes to the test's own output: pytest shows it where a test fails.
    start = partial(trio.run_process, argv, stdin=subprocess.DEVNULL, check=False)
    count_boots("qemu", 1)
    async with trio.open_nursery() as nursery:
        yield BareGuest(link, await nursery.start(start))
        nursery.cancel_scope.cancel()


def _argv(image: Image, overlay: Path, link: Path, differences: Differences) -> list[str]:
    line = "console=ttyS0 reboot=t panic=-1 quiet loglevel=1 random.trust_cpu=on cryptomgr.notests"
    initramfs = differences.get("initramfs", image.initramfs)
    console = f"file,path={differences['console']}" if "console" in differences else "stdio,signal=off"
    argv = [
        "qemu-system-x86_64",
        *("-M", "microvm,accel=tcg,acpi=on,rtc=on,pit=on,pic=on,x-option-roms=off,isa-serial=on"),
        *("-cpu", "max", "-smp", "1", "-m", f"{MEM_MIB}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(image.kernel), "-initrd", str(initramfs)),
        *("-append", f"{line} tsc_early_khz={native.tsc_khz()}"),
        *("-chardev", f"{console},id=console", "-serial", "chardev:console"),
        *("-device", "virtio-serial-device", "-chardev", f"socket,id=link,path={link},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=link,name={differences.get('port', 'nimbus.link')}"),
        *(
            "-drive",
            f"if=none,id=root,file={image.rootfs},format=raw,readonly=on",
            "-device",
            "virtio-blk-device,drive=root",
        ),
        *("-drive", f"if=none,id=own,file={overlay},format=raw,cache=unsafe", "-device", "virtio-blk-device,drive=own"),
    ]
    if differences.get("network", True):
        argv += ["-netdev", "user,id=net,restrict=on", "-device", f"virtio-net-device,netdev=net,mac={NET.mac}"]
    return [*argv, *differences.get("more", ())]
