"""Hosts for tests: this machine as one agent of its own sees it, with the fake VMM or with QEMU.

Every host has a state root of its own, so that tests, a developer's VMs and a neighbour's never meet.
`count_boot` feeds the summary's line that says how many guests really booted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from nimbus.host import native
from nimbus.host.inventory import Territory
from nimbus.host_agent.build import Host
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.lifecycle import Order
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.settings import default_state_dir
from nimbus.host_agent.ties import Ties
from nimbus.host_agent.vmm.choice import Choice, choose_vmm
from nimbus.host_agent.vmm.firecracker import Firecracker
from nimbus.model.vm import Command, Shape
from nimbus.storage.content import ImageStore, hash_file
from nimbus.storage.images import Image, list_images, resolve_image
from tests.fakes.install import install_fakes

BUILT_IMAGES = Path(os.environ.get("NIMBUS_STATE_DIR") or default_state_dir()) / "images"


def is_root() -> bool:
    return os.geteuid() == 0


needs_root = pytest.mark.skipif(not is_root(), reason="needs root: namespaces, cgroups and mounts")


def require_guest() -> None:
    """Skip, with the reason, where no Linux guest can be booted."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed: `make setup` installs it")
    if "base" not in list_images(ImageStore(BUILT_IMAGES)):
        pytest.skip("no image to boot: `nimbus assets build` makes it")


@dataclass
class Collected:
    """An output sink that keeps what it is given."""

    streams: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    grown: trio.Event = field(default_factory=trio.Event)

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        assert offset == len(self.streams[stream])
        self.streams[stream] += data
        self.grown.set()
        self.grown = trio.Event()
        return offset + len(data)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_for(self, text: str) -> None:
        """Return once stdout contains `text`."""
        while text not in self.stdout:
            await self.grown.wait()

    @property
    def stdout(self) -> str:
        return self.streams["stdout"].decode()

    @property
    def stderr(self) -> str:
        return self.streams["stderr"].decode()


@dataclass(frozen=True)
class TestHost:
    """One host and what it takes to give it orders."""

    __test__ = False

    host: Host
    territory: Territory
    image: Image | None = None  # instead of the built one

    def order(self, *argv: str, sink: OutputSink, shape: Shape = Shape(), **command: object) -> Order:  # noqa: B008
        """An order for `argv`; further words are the Command's."""
        wanted = Command(argv, **command)  # type: ignore[arg-type]

        async def give() -> Command:  # noqa: ASYNC124 - the lifecycle awaits its command
            return wanted

        image = self.image
        if image is None and self.host.choice.vmm.needs_guest_files:
            image = resolve_image(ImageStore(self.host.layout.images), "base")
        return Order(shape, image, give, Ties(_opening(sink)))


def _opening(sink: OutputSink) -> Callable[[OpenRecord], AbstractAsyncContextManager[OutputSink]]:
    @asynccontextmanager
    async def open_sink(_: OpenRecord) -> AsyncIterator[OutputSink]:
        yield sink

    return open_sink


def make_host(territory: Territory, backend: str) -> TestHost:
    """A host on this machine whose VMs live in `territory`."""
    if backend == "qemu":
        require_guest()
        images = territory.state_root / "images"
        if not images.exists():
            images.symlink_to(BUILT_IMAGES)
    layout = HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)
    if backend == "fake_firecracker":
        fakes = install_fakes(territory.state_root / "fakes")
        fake = Choice(Firecracker(), "kvm", fakes.firecracker, fakes.jailer)
        return TestHost(Host(layout, fake, 0), territory, make_mock_image(territory.state_root / "files"))
    choice = choose_vmm(backend, "tcg")
    return TestHost(Host(layout, choice, native.tsc_khz() if backend == "qemu" else 0), territory)


def make_mock_image(folder: Path) -> Image:
    """Files that no machine boots from: enough for a fake that opens them and looks at no more than their beginning."""
    folder.mkdir()
    files = {role: folder / role for role in ("vmlinux", "initramfs", "rootfs")}
    for path in files.values():
        path.write_bytes(b"\x7fELF" + bytes(508))
        path.chmod(0o444)
    digests = {role: hash_file(path).sha256 for role, path in files.items()}
    return Image(
        "mock", files["vmlinux"], files["vmlinux"], files["initramfs"], files["rootfs"], "none", digests, "0" * 64
    )
