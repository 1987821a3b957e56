"""A whole release list: everything of it is installed, or nothing is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.model.errors import Conflict, HostFault, NotFound, Refused, Unavailable
from nimbus.rootfs.fetch import Fetch, Fetched, fetch_releases
from nimbus.rootfs.filesystem import write_filesystem
from nimbus.rootfs.tree import file, plan_tree
from nimbus.storage.images import list_images, resolve_image, verify_image
from tests.unit.rootfs.releaseserver import Page, open_site
from tests.unit.rootfs.releaseshop import PROGRAMS, RELEASE, VMLINUX, Shop, elf, tgz
from tests.unit.rootfs.samples import bzimage, payload_of


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("rootfs") / "image"
    path.touch()
    write_filesystem(path, plan_tree((file("hello", b"world"),)))
    return path.read_bytes()


@pytest.fixture
def shop(tmp_path: Path, rootfs: bytes) -> Iterator[Shop]:
    with open_site() as site:
        yield Shop(site, tmp_path, rootfs)


async def fetch(order: Fetch) -> Fetched:
    with trio.fail_after(120):
        return await fetch_releases(order)


async def test_programs_lie_in_a_folder_of_their_release_run_by_all_and_written_by_the_owner(shop: Shop) -> None:
    fetched = await fetch(shop.order(shop.programs()))
    folder = shop.state / "releases" / "firecracker-v1"
    assert {name: (folder / name).read_bytes() for name in PROGRAMS} == PROGRAMS
    assert {path.stat().st_mode & 0o7777 for path in (folder, folder / "firecracker", folder / "jailer")} == {0o755}
    (program,) = fetched.programs
    assert (program.folder, program.changed, fetched.image) == (folder, True, None)
    assert json.loads((folder / "release.json").read_bytes())["files"]["jailer"]["bytes"] == len(PROGRAMS["jailer"])


async def test_a_kernel_and_a_root_file_system_become_an_image_that_resolves_and_verifies(shop: Shop) -> None:
    fetched = await fetch(shop.order(shop.image()))
    image = resolve_image(shop.store, "fetched")
    assert (image.vmlinux.read_bytes(), image.rootfs.read_bytes()) == (VMLINUX, shop.files["/rootfs"])
    assert image.kernel_release == RELEASE
    assert b"\x7fELF init" in image.initramfs.read_bytes()
    assert fetched.image == verify_image(shop.store, "fetched")
    assert fetched.image_changed


async def test_a_bzimage_is_unpacked_for_who_boots_the_elf(shop: Shop) -> None:
    packed = bzimage(payload_of(VMLINUX, "gzip"), release=RELEASE)
    shop.files["/vmlinux"] = shop.site.pages["/vmlinux"].content = packed
    await fetch(shop.order(shop.image().replace('"vmlinux"', '"vmlinuz"')))
    image = resolve_image(shop.store, "fetched")
    assert (image.vmlinux.read_bytes(), image.kernel.read_bytes(), image.kernel_release) == (VMLINUX, packed, RELEASE)


async def test_a_second_fetch_asks_no_server_and_changes_nothing(shop: Shop) -> None:
    order = shop.order(shop.programs() + shop.image())
    first = await fetch(order)
    asked = len(shop.site.asked)
    again = await fetch(order)
    assert len(shop.site.asked) == asked == 3
    assert not again.image_changed
    assert [program.changed for program in again.programs] == [False]
    assert again.image == first.image
    assert list((shop.store.cache / "downloads").glob("*.partial")) == []


async def test_a_damaged_program_is_fetched_again(shop: Shop) -> None:
    order = shop.order(shop.programs())
    await fetch(order)
    jailer = shop.state / "releases" / "firecracker-v1" / "jailer"
    jailer.write_bytes(b"evil")
    assert (await fetch(order)).programs[0].changed
    assert jailer.read_bytes() == PROGRAMS["jailer"]


async def test_a_damaged_image_is_fetched_again(shop: Shop) -> None:
    order = shop.order(shop.image())
    await fetch(order)
    rootfs = resolve_image(shop.store, "fetched").rootfs
    rootfs.chmod(0o600)
    rootfs.write_bytes(bytes(rootfs.stat().st_size))
    await fetch(order)
    verify_image(shop.store, "fetched")


async def test_other_bytes_under_an_installed_releases_name_need_a_word(shop: Shop) -> None:
    await fetch(shop.order(shop.programs()))
    shop.files["/fc.tgz"] = shop.site.pages["/fc.tgz"].content = tgz(PROGRAMS | {"jailer": elf(b"another")})
    with pytest.raises(Conflict, match=r"holds another firecracker v1 than the list names.*--force"):
        await fetch(shop.order(shop.programs()))
    await fetch(shop.order(shop.programs(), force=True))
    assert (shop.state / "releases" / "firecracker-v1" / "jailer").read_bytes() == elf(b"another")
    assert shop.installed() == ["firecracker-v1"]


async def test_two_releases_lie_side_by_side(shop: Shop) -> None:
    await fetch(shop.order(shop.programs()))
    await fetch(shop.order(shop.programs("v2")))
    assert shop.installed() == ["firecracker-v1", "firecracker-v2"]


@pytest.mark.parametrize("fault", ["absent", "cut", "another"])
@pytest.mark.parametrize("path", ["/fc.tgz", "/vmlinux", "/rootfs"])
async def test_one_bad_download_installs_nothing_of_the_list(shop: Shop, path: str, fault: str) -> None:
    order = shop.order(shop.programs() + shop.image())
    whole = shop.files[path]
    bad = {"absent": Page(status=404), "cut": Page(whole, cut_at=10), "another": Page(whole[::-1])}[fault]
    shop.site.pages[path] = bad
    with pytest.raises((NotFound, Unavailable, HostFault)):
        await fetch(order)
    assert (shop.installed(), list_images(shop.store)) == ([], ())
    shop.site.pages[path] = Page(whole)
    await fetch(order)
    assert (shop.installed(), list_images(shop.store)) == (["firecracker-v1"], ("fetched",))


async def test_what_was_whole_stays_for_the_fetch_after_one_that_broke(shop: Shop) -> None:
    order = shop.order(shop.image())
    shop.site.pages["/rootfs"] = Page(status=503)
    with pytest.raises(Unavailable):
        await fetch(order)
    shop.site.pages["/rootfs"] = Page(shop.files["/rootfs"])
    await fetch(order)
    assert [request.path for request in shop.site.asked].count("/vmlinux") == 1


@pytest.mark.parametrize(
    ("path", "content", "why"),
    [
        ("/fc.tgz", tgz(PROGRAMS | {"jailer": b"#!/bin/sh"}), "jailer is no 64-bit ELF file"),
        ("/fc.tgz", tgz(PROGRAMS | {"jailer": elf(b"", machine=8)}), "jailer is for another machine than this one"),
        ("/fc.tgz", tgz({"firecracker": PROGRAMS["firecracker"]}), "does not hold release-v1/jailer-v1"),
        ("/vmlinux", b"MZ", "vmlinux is no 64-bit ELF file"),
        ("/vmlinux", elf(b"no kernel"), "holds no version of Linux"),
        ("/rootfs", b"hsqs" + bytes(4096), "rootfs is no ext4 file system"),
        ("/rootfs", bytes(0x438) + b"\x53\xef" + bytes(4096), "e2fsck failed"),
    ],
)
async def test_a_file_with_the_right_hash_that_is_not_what_it_should_be_installs_nothing(
    shop: Shop, path: str, content: bytes, why: str
) -> None:
    shop.files[path] = shop.site.pages[path].content = content
    with pytest.raises(HostFault, match=why):
        await fetch(shop.order(shop.programs() + shop.image()))
    assert (shop.installed(), list_images(shop.store)) == ([], ())


async def test_a_member_may_be_pinned_too(shop: Shop) -> None:
    pinned = shop.programs().replace('v1"}, {role = "jailer"', f'v1", sha256 = "{"0" * 64}"}}, {{role = "jailer"')
    with pytest.raises(HostFault, match="firecracker v1: its firecracker hashes to"):
        await fetch(shop.order(pinned))


async def test_a_list_over_http_needs_its_own_sha256(shop: Shop) -> None:
    order = shop.order(shop.programs())
    text = shop.text
    shop.site.pages["/list.toml"] = Page(text)
    remote = replace(order, place=shop.site.url("/list.toml"))
    with pytest.raises(Refused, match="could be anybody's: use https, or give its --sha256"):
        await fetch(remote)
    assert shop.site.asked == []
    with pytest.raises(Refused, match=r"hashes to .* and not to the --sha256"):
        await fetch(replace(remote, list_sha256="0" * 64))
    digest = hashlib.sha256(text).hexdigest()
    assert (await fetch(replace(remote, list_sha256=digest))).list_sha256 == digest


async def test_a_list_that_is_not_there_is_told_by_its_name(shop: Shop) -> None:
    with pytest.raises(Refused, match=r"release list /nowhere/list.toml cannot be read: No such file"):
        await fetch(replace(shop.order(""), place="/nowhere/list.toml"))


async def test_a_second_fetch_at_the_same_time_is_told_to_wait(shop: Shop) -> None:
    folder = shop.store.cache / "downloads"
    folder.mkdir(parents=True)
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another fetch is at work"):
            await fetch(shop.order(shop.programs()))


async def test_what_a_killed_fetch_unpacked_is_swept_and_its_download_is_not(shop: Shop) -> None:
    order = shop.order(shop.programs())
    shop.site.pages["/fc.tgz"].cut_at = 10
    with pytest.raises(Unavailable):
        await fetch(order)
    left = [shop.store.cache / "downloads" / "unpacked-x", shop.state / "releases" / ".fetch-x"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"half")
    shop.site.pages["/fc.tgz"].cut_at = None
    await fetch(order)
    assert shop.site.asked[-1].range == "bytes=10-"
    assert [folder.exists() for folder in left] == [False, False]


async def test_a_state_folder_that_cannot_be_written_is_the_hosts_fault(shop: Shop) -> None:
    shutil.rmtree(shop.state / "releases", ignore_errors=True)
    (shop.state / "releases").write_text("in the way")
    with pytest.raises(HostFault, match="is NIMBUS_STATE_DIR right"):
        await fetch(shop.order(shop.programs()))
