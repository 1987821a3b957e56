"""A release list with all of its files on a site of our own, and a state folder to fetch into."""

from __future__ import annotations

import hashlib
import io
import platform
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

from nimbus.rootfs.activate import ELF_MACHINES
from nimbus.rootfs.fetch import Fetch
from nimbus.storage.content import ImageStore
from tests.unit.rootfs.releaseserver import Page, Site

ARCH = platform.machine()
RELEASE = "6.1.155"


def elf(content: bytes, machine: int | None = None) -> bytes:
    number = ELF_MACHINES[ARCH] if machine is None else machine
    return struct.pack("<16sHHI", b"\x7fELF\x02\x01\x01", 2, number, 1) + content


PROGRAMS = {"firecracker": elf(b"firecracker"), "jailer": elf(b"jailer")}
VMLINUX = elf(b"code Linux version " + RELEASE.encode() + b" (builder) more code")


def tgz(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"release-v1/{name}-v1")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def entry(name: str, url: str, content: bytes, files: str, release: str = "v1") -> str:
    digest = hashlib.sha256(content).hexdigest()
    return (
        f'[[download]]\nname = "{name}"\nrelease = "{release}"\nurl = "{url}"\nsha256 = "{digest}"\nfiles = [{files}]\n'
    )


BOTH = (
    '{role = "firecracker", member = "release-v1/firecracker-v1"}, {role = "jailer", member = "release-v1/jailer-v1"}'
)


class Shop:
    """A site with a whole list's files, and a state folder to fetch into."""

    def __init__(self, site: Site, state: Path, rootfs: bytes) -> None:
        self.site, self.state = site, state
        self.files = {"/fc.tgz": tgz(PROGRAMS), "/vmlinux": VMLINUX, "/rootfs": rootfs}
        site.pages = {path: Page(content) for path, content in self.files.items()}
        (state / "init").write_bytes(b"\x7fELF init")
        self.store = ImageStore(state / "images")

    def programs(self, release: str = "v1") -> str:
        return entry("firecracker", self.site.url("/fc.tgz"), self.files["/fc.tgz"], BOTH, release)

    def image(self) -> str:
        kernel = entry("kernel", self.site.url("/vmlinux"), self.files["/vmlinux"], '{role = "vmlinux"}')
        return kernel + entry("rootfs", self.site.url("/rootfs"), self.files["/rootfs"], '{role = "rootfs"}')

    def order(self, text: str, **changes: object) -> Fetch:
        path = self.state / "list.toml"
        self.text = f'version = 1\nimage = {{ name = "fetched" }}\n{text}'.encode()
        path.write_bytes(self.text)
        order = Fetch(str(path), self.store, self.state / "releases", lambda _: None, init=self.state / "init")
        return replace(order, **changes)  # type: ignore[arg-type]

    def installed(self) -> list[str]:
        releases = self.state / "releases"
        return sorted(path.name for path in releases.iterdir()) if releases.exists() else []
