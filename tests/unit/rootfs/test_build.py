"""Whole builds with the real apt and dpkg, from a small archive of our own on this disk: no network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nimbus.model.errors import HostFault
from nimbus.rootfs.build import Build, Built, build_image
from nimbus.rootfs.modules import WANTED
from nimbus.rootfs.packages import BUSYBOX, KERNEL_META
from nimbus.storage.content import ImageStore
from nimbus.storage.images import list_images, resolve_image, verify_image
from tests.unit.rootfs.samples import (
    RELEASE,
    VMLINUX,
    bzimage,
    make_deb,
    module_files,
    payload_of,
    write_index,
)

ROOT = Path(__file__).parents[3]
BUILDER = """
import sys
from pathlib import Path
from nimbus.rootfs.build import Build, build_image
from nimbus.storage.content import ImageStore
store, init = map(Path, sys.argv[1:])
def say(line):
    print(line, flush=True)
build_image(Build(ImageStore(store), say, init=init))
print("done", flush=True)
"""


class Archive:
    """A flat package archive, and a client configured to know nothing else."""

    def __init__(self, folder: Path) -> None:
        self.packages, self.lists, self.configuration = folder / "archive", folder / "lists", folder / "apt.conf"
        self.packages.mkdir()
        (self.lists / "partial").mkdir(parents=True)
        (folder / "parts").mkdir()
        self._published = int(time.time()) - 3600
        (folder / "sources.list").write_text(f"deb [trusted=yes] file:{self.packages} ./\n")
        self.configuration.write_text(
            f'Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Etc::sourceparts "{folder}/parts";'
            f'Dir::State::lists "{self.lists}"; Dir::Cache "{folder}/cache"; APT::Sandbox::User "";'
        )

    def offer_kernel(self, version: str, vmlinux: bytes = VMLINUX) -> None:
        """Put a kernel and its metapackage into the archive in place of the older ones."""
        for old in self.packages.glob("linux-*"):
            old.unlink()
        name = f"linux-image-{RELEASE}"
        files = {f"boot/vmlinuz-{RELEASE}": bzimage(payload_of(vmlinux, "lz4")), **module_files(WANTED)}
        make_deb(self.packages, name, version, files)
        make_deb(self.packages, KERNEL_META, version, {"usr/share/doc/x": b""}, depends=f"{name} (= {version})")
        self._publish()

    def offer_busybox(self) -> None:
        program = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
        make_deb(self.packages, BUSYBOX, "1:1.35", {"bin/busybox": program})
        self._publish()

    def _publish(self) -> None:
        """Write the index, dated later than the last: apt tells two of the same second for one."""
        write_index(self.packages)
        self._published += 10
        for index in self.packages.glob("*Packages*"):
            os.utime(index, (self._published, self._published))

    def update(self) -> None:
        """What an administrator's `apt-get update` does."""
        subprocess.run(("apt-get", "-q", "update"), check=True, capture_output=True)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    archive = Archive(tmp_path)
    archive.offer_busybox()
    archive.offer_kernel("6.1-1")
    monkeypatch.setenv("APT_CONFIG", str(archive.configuration))
    return archive


@pytest.fixture
def build(tmp_path: Path, archive: Archive) -> Build:
    archive.update()
    init = tmp_path / "nimbus-init"
    init.write_bytes(b"\x7fELF init")
    return Build(ImageStore(tmp_path / "images"), lambda _: None, init=init)


def heard(build: Build) -> tuple[Built, list[str]]:
    """A build, and what it said it did."""
    lines: list[str] = []
    return build_image(replace(build, progress=lines.append)), lines


def start_builder(build: Build) -> subprocess.Popen[str]:
    argv = (sys.executable, "-c", BUILDER, str(build.store.root), str(build.init))
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_build_publishes_an_image_that_resolves_and_verifies(build: Build) -> None:
    assert build_image(build).changed
    image = resolve_image(build.store, "base")
    assert image.vmlinux.read_bytes() == VMLINUX
    assert image.kernel_release == RELEASE
    assert b"modules.list" in image.initramfs.read_bytes()
    verify_image(build.store, "base")


def test_the_initramfs_holds_init_and_the_modules_in_order(build: Build) -> None:
    build_image(build)
    archive = resolve_image(build.store, "base").initramfs.read_bytes()
    # cpio stops at the first archive's end, as the kernel does not: cut it off to see the second
    first_end = archive.index(b"TRAILER!!!")
    second = archive[archive.index(b"070701", first_end) :]
    argv = ("cpio", "-i", "--quiet", "--to-stdout", "modules.list")
    listed = subprocess.run(argv, input=second, capture_output=True, check=True).stdout.decode()
    assert [line.split()[0] for line in listed.splitlines()] == [f"{name}.ko" for name in WANTED]
    names = subprocess.run(("cpio", "-it", "--quiet"), input=archive, capture_output=True, check=True).stdout.split()
    assert b"init" in names


def test_two_stores_built_from_the_same_packages_hold_the_same_bytes(build: Build, tmp_path: Path) -> None:
    other = replace(build, store=ImageStore(tmp_path / "other"))
    assert build_image(build).manifest.files == build_image(other).manifest.files


def test_a_second_build_asks_nobody_and_makes_nothing(build: Build) -> None:
    build_image(build)
    built, said = heard(build)
    assert not built.changed
    assert said == []


def test_a_new_init_program_makes_only_the_initramfs_anew(build: Build) -> None:
    before = build_image(build).manifest.files
    build.init.write_bytes(b"\x7fELF another")
    built, said = heard(build)
    assert said == ["packing the initramfs"]
    assert {role for role in before if before[role] != built.manifest.files[role]} == {"initramfs"}


def test_a_new_kernel_in_the_lists_makes_a_new_image(build: Build, archive: Archive) -> None:
    build_image(build)
    archive.offer_kernel("6.1-2", VMLINUX + b"fixed")
    archive.update()
    built = build_image(build)
    assert built.changed
    assert built.manifest.provenance.packages[0].version == "6.1-2"
    assert resolve_image(build.store, "base").vmlinux.read_bytes() == VMLINUX + b"fixed"


def test_lists_that_name_a_package_no_longer_offered_are_refreshed(build: Build, archive: Archive) -> None:
    archive.offer_kernel("6.1-2")  # and nobody ran `apt-get update` since
    built, said = heard(build)
    assert built.manifest.provenance.packages[0].version == "6.1-2"
    assert any("lists of our own" in line for line in said)


def test_a_machine_without_package_lists_builds_with_lists_of_its_own(build: Build, archive: Archive) -> None:
    shutil.rmtree(archive.lists)
    assert build_image(build).changed
    built, said = heard(build)
    assert (built.changed, said) == (False, [])


def test_force_repairs_a_blob_whose_bytes_changed(build: Build) -> None:
    manifest = build_image(build).manifest
    path = build.store.blob_path(manifest.files["rootfs"].sha256)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    assert build_image(replace(build, force=True)).manifest.files == manifest.files
    verify_image(build.store, "base")


def test_a_package_damaged_in_the_cache_is_fetched_again(build: Build) -> None:
    manifest = build_image(build).manifest
    (deb,) = (build.store.cache / "debs").glob("linux-*")
    deb.write_bytes(b"no package")
    shutil.rmtree(build.store.blobs)
    assert build_image(build).manifest.files == manifest.files


def test_a_build_without_nimbus_init_says_who_makes_it(build: Build, tmp_path: Path) -> None:
    with pytest.raises(HostFault, match=r"absent is not there: `make build`"):
        build_image(replace(build, init=tmp_path / "absent"))


def test_an_archive_without_the_kernel_is_named(build: Build, archive: Archive) -> None:
    for path in archive.packages.glob(f"{KERNEL_META}*"):
        path.unlink()
    write_index(archive.packages)
    archive.update()
    with pytest.raises(HostFault, match=KERNEL_META):
        build_image(build)
    assert list_images(build.store) == ()


@pytest.mark.parametrize("line", ["asking apt", "unpacking linux", "packing the initramfs", "filling the root"])
def test_a_build_killed_in_any_step_shows_no_image_and_the_next_one_ends(build: Build, line: str) -> None:
    builder = start_builder(build)
    assert builder.stdout is not None
    for said in builder.stdout:
        if said.startswith(line):
            break
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    assert list_images(build.store) == ()
    assert build_image(build).changed
    verify_image(build.store, "base")
    assert list(build.store.staging.iterdir()) == []


def test_two_builds_at_once_both_end_and_agree(build: Build) -> None:
    builders = [start_builder(build) for _ in range(2)]
    outputs = [builder.communicate()[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sum("unpacking linux" in output for output in outputs) == 1
    verify_image(build.store, "base")


def test_a_store_that_cannot_be_written_is_the_hosts_fault(build: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostFault, match="is NIMBUS_STATE_DIR right"):
        build_image(replace(build, store=ImageStore(tmp_path / "file" / "images")))


def test_the_manifest_says_what_went_in(build: Build) -> None:
    build_image(build)
    document = json.loads((build.store.manifests / "base.json").read_bytes())
    assert [package["name"] for package in document["provenance"]["packages"]] == [f"linux-image-{RELEASE}", BUSYBOX]
    assert set(document["provenance"]["inputs"]) == {"nimbus-init", "files", "e2fsprogs"}
    assert os.stat(build.store.manifests / "base.json").st_mode & 0o777 == 0o444
