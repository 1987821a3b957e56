"""An image's initramfs with something else in it: the kernel unpacks later archives over earlier ones."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from nimbus.rootfs import debian
from nimbus.rootfs.initramfs import MODULES_FOLDER, MODULES_LIST, render_cpio
from nimbus.rootfs.modules import WANTED, Module, is_module, select_modules
from nimbus.rootfs.tree import Entry, file, plan_tree
from nimbus.storage.content import ImageStore
from nimbus.storage.images import resolve_image
from tests.hosts import BUILT_IMAGES

GUEST = Path(__file__).resolve().parents[2] / "native" / "guest"
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O1", "-static", "-Wall", "-Werror")


def alter_initramfs(folder: Path, entries: Iterable[Entry]) -> Path:
    """The image's own with these entries put over it."""
    image = resolve_image(ImageStore(BUILT_IMAGES), "base")
    path = folder / "initramfs"
    path.write_bytes(image.initramfs.read_bytes() + render_cpio(plan_tree(entries)))
    return path


def compile_init(folder: Path, *defines: str) -> bytes:
    """nimbus-init of this checkout with some of its numbers changed."""
    return _compile(sorted(GUEST.glob("*.c")), folder / "nimbus-init", defines)


def compile_program(source: str, folder: Path) -> bytes:
    """A program of the tests, to run in a guest."""
    return _compile([GUEST / "test" / f"{source}.c"], folder / source)


def loopback_modules() -> tuple[Entry, ...]:
    """The image's modules, those for vsock without their device, and with them the kernel's vsock to itself."""
    store = ImageStore(BUILT_IMAGES)
    release = resolve_image(store, "base").kernel_release
    package = next((store.cache / "debs").glob(f"linux-image-{release}_*.deb"), None)
    if package is None:
        pytest.skip(f"the package of kernel {release} is not in the image store: `nimbus assets build` keeps it there")
    found = debian.read_deb(package, lambda path: is_module(path) or path.endswith("/modules.builtin"))
    builtin = b"".join(content for path, content in found.items() if path.endswith("/modules.builtin"))
    files = {path: content for path, content in found.items() if is_module(path)}
    modules: tuple[Module, ...] = select_modules(files, builtin.decode().split(), (*WANTED, "vsock_loopback"))
    names = "".join(f"{module.file_name}\n" for module in modules)
    loopback = next(module for module in modules if module.name == "vsock_loopback")
    return file(MODULES_LIST, names.encode()), file(f"{MODULES_FOLDER}/{loopback.file_name}", loopback.content)


def _compile(sources: Sequence[Path], program: Path, defines: Sequence[str] = ()) -> bytes:
    argv = ("cc", *FLAGS, *(f"-D{define}" for define in defines), *map(str, sources), "-o", str(program))
    subprocess.run(argv, check=True)
    return program.read_bytes()
