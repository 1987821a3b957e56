"""Builds an image from the distribution's packages and our own files, step by step, and publishes it.

Needs no root and no network but apt's. Equal inputs give equal bytes, and a second build with equal inputs does
nothing. Called by `nimbus assets build`.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from nimbus.model.errors import HostFault
from nimbus.rootfs import busybox, debian, initramfs, kernel, modules
from nimbus.rootfs.filesystem import write_filesystem
from nimbus.rootfs.packages import Packages, fetch_packages
from nimbus.rootfs.steps import Outputs, Step, run_step
from nimbus.rootfs.tree import digest_tree, plan_tree
from nimbus.storage.content import ImageStore, put_bytes, put_file, staged_file, sweep_staging
from nimbus.storage.ext4 import run_e2fs
from nimbus.storage.images import (
    DEFAULT_IMAGE,
    Manifest,
    Package,
    Provenance,
    check_image_name,
    put_manifest,
    read_manifest,
)

INIT_PROGRAM = Path(__file__).parent / "bin" / "nimbus-init"


@dataclass(frozen=True)
class Build:
    """What to build, where, and whom to tell."""

    store: ImageStore
    progress: Callable[[str], None]
    name: str = DEFAULT_IMAGE
    init: Path = INIT_PROGRAM
    files: Path = busybox.FILES
    force: bool = False  # make everything anew, though nothing has changed: repairs a damaged store


@dataclass(frozen=True)
class Built:
    manifest: Manifest
    changed: bool  # False: the image was there already, byte for byte


def build_image(build: Build) -> Built:
    """Fetch, make, publish. Refused or HostFault say what is missing and who must install it."""
    check_image_name(build.name)
    debian.check_platform()
    init = _read_init(build.init)
    e2fsprogs = run_e2fs("mke2fs", "-V").split("\n", 1)[0]
    try:
        with _builders_lock(build):
            sweep_staging(build.store)
            return _build_locked(build, init, e2fsprogs)
    except OSError as error:  # a full disk, a folder of another user
        where = error.filename or build.store.root
        raise HostFault(f"the image cannot be written: {where}: {error.strerror}; is NIMBUS_STATE_DIR right?") from None


def _build_locked(build: Build, init: bytes, e2fsprogs: str) -> Built:
    packages = fetch_packages(build.store, build.progress, ask_again=build.force)
    made = _make_files(build, packages, init, e2fsprogs)
    files = {role: blob for outputs in made for role, blob in outputs.blobs.items() if role != "modules"}
    provenance = _provenance(packages, build.files, init, e2fsprogs)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    release = made[0].facts["kernel_release"]
    changed = put_manifest(build.store, Manifest(build.name, created, release, files, provenance))
    return Built(read_manifest(build.store, build.name), changed)


def _make_files(build: Build, packages: Packages, init: bytes, e2fsprogs: str) -> tuple[Outputs, Outputs, Outputs]:
    store, force = build.store, build.force
    kernel_step = Step("kernel", 2, {"package": packages.kernel.sha256, "modules": ",".join(modules.WANTED)})
    from_kernel = run_step(store, kernel_step, partial(_make_kernel, build, packages), force=force)
    module_archive = from_kernel.blobs["modules"]
    init_step = Step("initramfs", 2, {"modules": module_archive.sha256, "init": _sha256(init)})
    from_init = run_step(store, init_step, partial(_make_initramfs, build, module_archive.sha256, init), force=force)
    inputs = {"busybox": packages.busybox.sha256, "files": _digest_files(build.files), "e2fsprogs": e2fsprogs}
    from_base = run_step(store, Step("rootfs", 1, inputs), partial(_make_rootfs, build, packages), force=force)
    return from_kernel, from_init, from_base


def _make_kernel(build: Build, packages: Packages) -> Outputs:
    build.progress(f"unpacking {packages.kernel.package}")
    files = debian.read_deb(packages.kernel_path, _is_kernel_file)
    images = [content for path, content in files.items() if path.startswith("boot/vmlinuz-")]
    if len(images) != 1:
        raise HostFault(f"{packages.kernel.file_name} holds {len(images)} kernels; one was expected")
    builtin = [content for path, content in files.items() if path.endswith("/modules.builtin")]
    names = b"\n".join(builtin).decode().split()
    candidates = {path: content for path, content in files.items() if modules.is_module(path)}
    archive = initramfs.render_cpio(initramfs.plan_modules(modules.select_modules(candidates, names)))
    put = partial(put_bytes, build.store, replace=build.force)
    blobs = {
        "vmlinuz": put(images[0]),
        "vmlinux": put(kernel.extract_vmlinux(images[0])),
        "modules": put(archive),
    }
    return Outputs(blobs, {"kernel_release": kernel.read_release(images[0])})


def _is_kernel_file(path: str) -> bool:
    return path.startswith("boot/vmlinuz-") or path.endswith("/modules.builtin") or modules.is_module(path)


def _make_initramfs(build: Build, modules_sha256: str, init: bytes) -> Outputs:
    build.progress("packing the initramfs")
    archive = build.store.blob_path(modules_sha256).read_bytes()
    packed = initramfs.render_cpio(initramfs.plan_init(init)) + archive
    return Outputs({"initramfs": put_bytes(build.store, packed, replace=build.force)})


def _make_rootfs(build: Build, packages: Packages) -> Outputs:
    build.progress("filling the root file system")
    found = debian.read_deb(packages.busybox_path, lambda path: path in {"bin/busybox", "usr/bin/busybox"})
    if len(found) != 1:
        raise HostFault(f"{packages.busybox.file_name} holds no busybox")
    (program,) = found.values()
    with staged_file(build.store) as path:
        write_filesystem(path, busybox.plan_base(program, build.files))
        return Outputs({"rootfs": put_file(build.store, path, replace=build.force)})


def _provenance(packages: Packages, files: Path, init: bytes, e2fsprogs: str) -> Provenance:
    debs = (packages.kernel, packages.busybox)
    listed = tuple(Package(deb.package, deb.version, deb.sha256) for deb in debs)
    inputs = {"nimbus-init": _sha256(init), "files": _digest_files(files), "e2fsprogs": e2fsprogs}
    source = _sha256(repr((listed, sorted(inputs.items()))).encode())
    return Provenance(source, listed, inputs)


def _digest_files(files: Path) -> str:
    return digest_tree(plan_tree(busybox.read_files(files)))


def _read_init(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise HostFault(f"{path} is not there: `make build` compiles it") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _builders_lock(build: Build) -> Iterator[None]:
    """One build in a store at a time; the next waits, and then finds its work done."""
    try:
        build.store.cache.mkdir(parents=True, exist_ok=True)
        lock = (build.store.root / "lock").open("ab")
    except PermissionError as error:
        raise HostFault(
            f"{error.filename} may not be written by this user: use root, or set NIMBUS_STATE_DIR"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            build.progress("another build is at work in this store; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
