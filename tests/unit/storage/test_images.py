"""A name resolves to exactly what its manifest promised, or to an error that says who must do what."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import HostFault, NotFound, Refused
from nimbus.storage.content import ImageStore, put_bytes
from nimbus.storage.images import (
    ROLES,
    Manifest,
    Package,
    Provenance,
    check_image_name,
    list_images,
    parse_manifest,
    put_manifest,
    read_manifest,
    resolve_image,
    verify_image,
)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def publish(store: ImageStore, name: str = "base") -> Manifest:
    files = {role: put_bytes(store, f"{name} {role}".encode()) for role in ROLES}
    origin = Provenance("f" * 64, (Package("linux", "6.1", "a" * 64),), {"nimbus-init": "b" * 64})
    manifest = Manifest(name, "2026-11-21T00:00:00+00:00", "6.1.0-1-cloud-amd64", files, origin)
    put_manifest(store, manifest)
    return manifest


def test_a_published_image_resolves_to_files_with_the_promised_content(store: ImageStore) -> None:
    manifest = publish(store)
    image = resolve_image(store, "base")
    assert image.kernel.read_bytes() == b"base vmlinuz"
    assert image.vmlinux.read_bytes() == b"base vmlinux"
    assert image.initramfs.read_bytes() == b"base initramfs"
    assert image.rootfs.read_bytes() == b"base rootfs"
    assert image.kernel_release == "6.1.0-1-cloud-amd64"
    assert image.digests == {role: blob.sha256 for role, blob in manifest.files.items()}


def test_a_manifest_survives_the_way_through_its_file(store: ImageStore) -> None:
    assert publish(store) == read_manifest(store, "base")


def test_an_unknown_image_names_those_there_are_and_the_command_that_builds_it(store: ImageStore) -> None:
    publish(store, "base")
    publish(store, "eval")
    with pytest.raises(NotFound, match=r"'debian'.*base, eval.*`nimbus assets build --name debian`"):
        resolve_image(store, "debian")


def test_an_empty_store_has_no_images_and_says_so(store: ImageStore) -> None:
    assert list_images(store) == ()
    with pytest.raises(NotFound, match="there: none"):
        resolve_image(store, "base")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../base", "A", "-x", "base\n", "x" * 64, "bäse", "a\0b"])
def test_a_name_that_could_leave_the_store_is_refused(store: ImageStore, name: str) -> None:
    with pytest.raises(Refused, match="is no image name"):
        resolve_image(store, name)


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True))
def test_a_good_name_stays_as_it_is(name: str) -> None:
    assert check_image_name(name) == name


@pytest.mark.parametrize("role", ROLES)
def test_a_missing_file_is_the_hosts_fault_and_names_the_repair(store: ImageStore, role: str) -> None:
    store.blob_path(publish(store).files[role].sha256).unlink()
    with pytest.raises(HostFault, match=rf"{role} at .* is missing.*`nimbus assets build --name base --force`"):
        resolve_image(store, "base")


def test_a_truncated_file_is_found_when_the_image_is_resolved(store: ImageStore) -> None:
    path = store.blob_path(publish(store).files["rootfs"].sha256)
    path.chmod(0o644)
    path.write_bytes(b"base")
    with pytest.raises(HostFault, match="4 bytes instead of 11"):
        resolve_image(store, "base")


def test_a_flipped_byte_is_found_when_the_image_is_verified(store: ImageStore) -> None:
    path = store.blob_path(publish(store).files["rootfs"].sha256)
    path.chmod(0o644)
    path.write_bytes(b"base rootfz")
    resolve_image(store, "base")
    with pytest.raises(HostFault, match=r"rootfs at .* hash to"):
        verify_image(store, "base")


def test_a_sound_image_verifies(store: ImageStore) -> None:
    manifest = publish(store)
    assert verify_image(store, "base") == manifest


def test_a_kernel_of_the_operators_takes_the_place_of_both_of_ours(store: ImageStore, tmp_path: Path) -> None:
    publish(store)
    own = tmp_path / "vmlinux-of-mine"
    own.write_bytes(b"mine")
    image = resolve_image(store, "base", kernel=own)
    assert (image.kernel, image.vmlinux) == (own, own)
    assert set(image.digests) == {"initramfs", "rootfs"}


def test_a_root_of_the_operators_takes_the_place_of_ours(store: ImageStore, tmp_path: Path) -> None:
    publish(store)
    own = tmp_path / "root.ext4"
    own.write_bytes(b"mine")
    image = resolve_image(store, "base", rootfs=own)
    assert image.rootfs == own
    assert "rootfs" not in image.digests


def test_an_override_that_is_no_file_names_its_variable(store: ImageStore, tmp_path: Path) -> None:
    publish(store)
    with pytest.raises(HostFault, match="NIMBUS_KERNEL_IMAGE"):
        resolve_image(store, "base", kernel=tmp_path / "absent")
    with pytest.raises(HostFault, match="NIMBUS_ROOTFS_IMAGE"):
        resolve_image(store, "base", rootfs=tmp_path)


def test_publishing_the_same_content_again_keeps_the_manifest_and_its_date(store: ImageStore) -> None:
    first = publish(store)
    assert put_manifest(store, replace(first, created="2030-01-01T00:00:00+00:00")) is False
    assert read_manifest(store, "base").created == first.created


def test_publishing_other_content_replaces_the_manifest(store: ImageStore) -> None:
    first = publish(store)
    assert put_manifest(store, replace(first, kernel_release="6.2")) is True
    assert read_manifest(store, "base").kernel_release == "6.2"


def set_version(document: dict[str, Any]) -> None:
    document["version"] = 2


def drop_rootfs(document: dict[str, Any]) -> None:
    del document["files"]["rootfs"]


def point_outside(document: dict[str, Any]) -> None:
    document["files"]["rootfs"]["sha256"] = "../../../etc/shadow"


def drop_provenance(document: dict[str, Any]) -> None:
    del document["provenance"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (set_version, "version 2"),
        (drop_rootfs, "no rootfs"),
        (point_outside, "not 64 hex digits"),
        (drop_provenance, "provenance"),
    ],
)
def test_a_manifest_that_is_none_of_ours_is_the_hosts_fault(
    store: ImageStore, damage: Callable[[dict[str, Any]], None], reason: str
) -> None:
    publish(store)
    path = store.manifests / "base.json"
    document = json.loads(path.read_bytes())
    damage(document)
    path.chmod(0o644)
    path.write_text(json.dumps(document))
    with pytest.raises(HostFault, match=rf"{reason}.*nimbus assets build --force"):
        resolve_image(store, "base")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_no_json_document_makes_the_parser_fail_in_another_way(document: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError, Refused)):
        parse_manifest(document)


@pytest.mark.parametrize("wreck", [b"", b"eval rootfX", b"eval rootf"])
def test_an_image_with_a_file_that_is_not_what_its_manifest_says_is_not_activated(
    store: ImageStore, wreck: bytes
) -> None:
    whole = publish(store)
    damaged = {**whole.files, "rootfs": put_bytes(store, b"eval rootfs")}
    rootfs = store.blob_path(damaged["rootfs"].sha256)
    rootfs.unlink()
    rootfs.write_bytes(wreck)
    with pytest.raises(HostFault, match=r"'eval': rootfs at .* is damaged"):
        put_manifest(store, replace(whole, name="eval", files=damaged))
    assert list_images(store) == ("base",)
