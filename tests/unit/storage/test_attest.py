"""What boots is what was published, or nothing boots; and a file that was read is read again only when it changed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from nimbus.model.attestation import Attestation
from nimbus.model.errors import HostFault
from nimbus.storage.attest import REREAD_S, AlteredImage, Attestor
from nimbus.storage.content import ImageStore, put_bytes
from nimbus.storage.images import ROLES, Image, Manifest, Provenance, put_manifest, resolve_image

HOUR_NS = 3600 * 10**9
LATER_NS = int(REREAD_S * 1e9) + 10**9


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path / "images")
    files = {role: put_bytes(store, f"the {role}".encode()) for role in ROLES}
    put_manifest(store, Manifest("base", "2026-11-21T00:00:00+00:00", "6.1.0", files, Provenance("f" * 64)))
    return store


class Clock:
    """An hour after the files were written, unless a test says otherwise."""

    def __init__(self, ahead_ns: int = HOUR_NS) -> None:
        self.ahead_ns = ahead_ns

    def __call__(self) -> int:
        return time.time_ns() + self.ahead_ns


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_an_attestation_names_each_file_that_boots_by_its_content(store: ImageStore) -> None:
    image, before = resolve_image(store, "base"), time.time()
    told = Attestor().attest(image)
    assert (told.image, told.manifest, told.overridden, told.template) == ("base", image.manifest_sha256, (), None)
    assert (told.kernel, told.initramfs, told.rootfs) == (sha("the vmlinux"), sha("the initramfs"), sha("the rootfs"))
    assert before - 1 < told.verified_at <= time.time()


def test_a_file_that_has_not_changed_is_read_once(store: ImageStore) -> None:
    clock, image = Clock(), resolve_image(store, "base")
    attestor = Attestor(clock)
    first = attestor.attest(image)
    clock.ahead_ns *= 1000
    assert attestor.attest(image) == first  # with the time of its reading


def test_machines_that_start_at_once_read_their_image_once(store: ImageStore) -> None:
    image, told = resolve_image(store, "base"), list[Attestation]()
    attestor = Attestor(Clock())
    threads = [Thread(target=lambda: told.append(attestor.attest(image))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 8
    assert len(set(told)) == 1  # and the time of its reading is in it


def test_a_file_that_was_written_just_now_is_not_known_yet(store: ImageStore) -> None:
    image = resolve_image(store, "base")
    attestor = Attestor(Clock(ahead_ns=0))
    assert attestor.attest(image).verified_at < attestor.attest(image).verified_at


def test_a_jail_that_takes_a_link_of_a_file_does_not_have_it_read_again_for_a_while(
    store: ImageStore, tmp_path: Path
) -> None:
    clock, image = Clock(), resolve_image(store, "base")
    attestor = Attestor(clock)
    first = attestor.attest(image)
    for role in ("vmlinux", "initramfs", "rootfs"):
        let_ctime_move(getattr(image, role), lambda path: (tmp_path / path.name).hardlink_to(path))
    assert attestor.attest(image) == first
    clock.ahead_ns += LATER_NS
    again = attestor.attest(image)
    assert again.verified_at > first.verified_at
    assert attestor.attest(image) == again


def let_ctime_move(path: Path, act: Callable[[Path], object]) -> None:
    before = path.stat().st_ctime_ns
    act(path)
    while path.stat().st_ctime_ns == before:  # until the file system's clock has ticked
        path.chmod(0o644)


def overwrite(path: Path) -> None:
    before = path.stat().st_mtime_ns
    content = path.read_bytes()[::-1]
    path.chmod(0o644)
    while path.stat().st_mtime_ns == before:  # likewise
        path.write_bytes(content)


def overwrite_and_hide_it(path: Path) -> None:
    before = path.stat()
    overwrite(path)
    let_ctime_move(path, lambda _: os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns)))


def put_another_in_its_place(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes()[::-1])
    other.replace(path)


@pytest.mark.parametrize("alter", [overwrite, put_another_in_its_place])
@pytest.mark.parametrize("role", ["vmlinux", "initramfs", "rootfs"])
def test_nothing_boots_from_a_file_that_was_altered_after_it_was_read(
    store: ImageStore, role: str, alter: Callable[[Path], None]
) -> None:
    attestor, image = Attestor(Clock()), resolve_image(store, "base")
    attestor.attest(image)
    alter(getattr(image, role))
    for _ in range(2):
        with pytest.raises(AlteredImage, match=rf"image 'base': {role} at .* and its manifest says .*nothing boots"):
            attestor.attest(image)


def test_who_hides_a_change_behind_the_old_mtime_is_found_out_after_a_while(store: ImageStore) -> None:
    clock, image = Clock(), resolve_image(store, "base")
    attestor = Attestor(clock)
    attestor.attest(image)
    overwrite_and_hide_it(image.rootfs)
    clock.ahead_ns += LATER_NS
    with pytest.raises(AlteredImage):
        attestor.attest(image)


def test_a_repaired_file_boots_again(store: ImageStore) -> None:
    attestor, image = Attestor(Clock()), resolve_image(store, "base")
    overwrite(image.rootfs)
    with pytest.raises(AlteredImage):
        attestor.attest(image)
    put_bytes(store, b"the rootfs", replace=True)
    assert attestor.attest(image).rootfs == sha("the rootfs")


def test_what_the_hosts_settings_put_in_its_place_is_read_and_named_as_such(store: ImageStore, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"my own")
    told = Attestor().attest(resolve_image(store, "base", rootfs=mine))
    assert (told.rootfs, told.kernel, told.overridden) == (sha("my own"), sha("the vmlinux"), ("rootfs",))
    told = Attestor().attest(resolve_image(store, "base", kernel=mine, rootfs=mine))
    assert (told.kernel, told.overridden) == (sha("my own"), ("kernel", "rootfs"))


def test_a_file_that_cannot_be_read_is_the_hosts_fault(store: ImageStore, tmp_path: Path) -> None:
    image = replace(resolve_image(store, "base"), rootfs=tmp_path / "gone")
    with pytest.raises(HostFault, match=r"its rootfs at .*/gone cannot be read: No such file"):
        Attestor().attest(image)


def test_what_a_host_has_read_does_not_grow_for_ever(store: ImageStore, tmp_path: Path) -> None:
    attestor, image = Attestor(Clock()), resolve_image(store, "base")
    for number in range(300):
        path = tmp_path / str(number)
        path.write_bytes(b"%d" % number)
        attestor.attest(without_rootfs(image, path))
    assert len(attestor._known) == 256


def without_rootfs(image: Image, path: Path) -> Image:
    return replace(image, rootfs=path, digests={role: image.digests[role] for role in ("vmlinux", "initramfs")})
