"""Images by name: a manifest gives blobs of the store their roles. Never builds and never boots anything.

The manifest is published last, so a reader sees a whole image or none. Called by the agent (in threads) and
`nimbus run` to resolve, by `nimbus assets` to list and verify, by `rootfs/` to publish.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nimbus.model.errors import HostFault, NotFound, Refused
from nimbus.storage.content import Blob, ImageStore, hash_file, publish, staged_file
from nimbus.storage.overlays import overlay_template

# What the agent needs of the store, it finds here.
__all__ = [
    "BUILD_COMMAND",
    "DEFAULT_IMAGE",
    "ROLES",
    "Image",
    "ImageStore",
    "Manifest",
    "Package",
    "Provenance",
    "check_image_name",
    "list_images",
    "overlay_template",
    "put_manifest",
    "read_manifest",
    "resolve_image",
    "verify_image",
]

MANIFEST_VERSION = 1
DEFAULT_IMAGE = "base"
BUILD_COMMAND = "nimbus assets build"
# What every image needs: the kernel twice (bzImage and the ELF inside it), and the two things it mounts.
ROLES = ("vmlinuz", "vmlinux", "initramfs", "rootfs")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Package:
    """One distribution package that went into an image."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """Where an image came from: equal `source` means built from equal inputs by equal steps."""

    source: str
    packages: tuple[Package, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    name: str
    created: str
    kernel_release: str
    files: Mapping[str, Blob]
    provenance: Provenance


@dataclass(frozen=True)
class Image:
    """A resolved image: paths that exist with the size that the manifest promises."""

    name: str
    kernel: Path  # bzImage, for loaders that want one
    vmlinux: Path  # ELF with a PVH note: what Firecracker boots, and what QEMU boots quickest
    initramfs: Path
    rootfs: Path
    kernel_release: str
    digests: Mapping[str, str]
    manifest_sha256: str


def check_image_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Refused(
            f"{name!r} is no image name: 1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit"
        )
    return name


def resolve_image(store: ImageStore, name: str, *, kernel: Path | None = None, rootfs: Path | None = None) -> Image:
    """Paths of the image `name`; `kernel` and `rootfs` take the place of its own (NIMBUS_KERNEL_IMAGE and its twin).

    Cheap on purpose (one stat per file): each start of a VM calls it. `verify_image` reads every byte.
    """
    raw, manifest = _read_manifest(store, name)
    paths = {role: _check_blob(store, name, role, manifest.files[role]) for role in ROLES}
    digests = {role: manifest.files[role].sha256 for role in ROLES}
    for role, override in (("vmlinuz", kernel), ("vmlinux", kernel), ("rootfs", rootfs)):
        if override is not None:
            paths[role] = _check_override(role, override)
            digests.pop(role)  # not ours, so nothing is known about its content
    return Image(
        name=manifest.name,
        kernel=paths["vmlinuz"],
        vmlinux=paths["vmlinux"],
        initramfs=paths["initramfs"],
        rootfs=paths["rootfs"],
        kernel_release=manifest.kernel_release,
        digests=digests,
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
    )


def list_images(store: ImageStore) -> tuple[str, ...]:
    try:
        names = os.listdir(store.manifests)
    except FileNotFoundError:
        return ()
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return tuple(sorted(stem for stem in stems if _NAME.fullmatch(stem)))


def read_manifest(store: ImageStore, name: str) -> Manifest:
    return _read_manifest(store, name)[1]


def verify_image(store: ImageStore, name: str) -> Manifest:
    """Re-hash every file of an image. HostFault names the first that is not what it was when published."""
    manifest = read_manifest(store, name)
    _check_content(store, manifest)
    return manifest


def put_manifest(store: ImageStore, manifest: Manifest) -> bool:
    """Publish, once every file has been read; False when the same is there already (its `created` is kept).

    HostFault where a file is not what the manifest says: an image that is activated is one that was whole.
    """
    check_image_name(manifest.name)
    path = store.manifests / f"{manifest.name}.json"
    try:
        present = read_manifest(store, manifest.name)
    except (NotFound, HostFault):
        present = None
    if present is not None and asdict(present) | {"created": ""} == asdict(manifest) | {"created": ""}:
        return False
    _check_content(store, manifest)
    text = json.dumps({"version": MANIFEST_VERSION} | asdict(manifest), indent=1, sort_keys=True)
    with staged_file(store) as staged:
        staged.write_text(text + "\n")
        publish(staged, path)
    return True


def _check_content(store: ImageStore, manifest: Manifest) -> None:
    for role, blob in manifest.files.items():
        path = _check_blob(store, manifest.name, role, blob)
        found = hash_file(path)
        if found.sha256 != blob.sha256:
            raise _damaged(manifest.name, role, path, f"its bytes hash to {found.sha256[:12]}…")


def _read_manifest(store: ImageStore, name: str) -> tuple[bytes, Manifest]:
    path = store.manifests / f"{check_image_name(name)}.json"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        known = ", ".join(list_images(store)) or "none"
        raise NotFound(
            f"no image {name!r} in {store.root} (there: {known}); `{BUILD_COMMAND} --name {name}` makes it"
        ) from None
    except PermissionError:
        raise HostFault(f"{path} may not be read by this user: run as the owner of {store.root}") from None
    try:
        return raw, parse_manifest(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, Refused) as error:
        raise HostFault(
            f"manifest {path} cannot be understood ({error}); `{BUILD_COMMAND} --force` writes it anew"
        ) from None


def parse_manifest(document: Any) -> Manifest:
    """Manifest of a JSON document; ValueError, KeyError or TypeError where it is none."""
    if document["version"] != MANIFEST_VERSION:
        raise ValueError(f"version {document['version']} is not {MANIFEST_VERSION}")
    files = {role: Blob(str(blob["sha256"]), int(blob["bytes"])) for role, blob in document["files"].items()}
    missing = [role for role in ROLES if role not in files]
    if missing:
        raise ValueError(f"no {missing[0]}")
    if not all(_SHA256.fullmatch(blob.sha256) for blob in files.values()):
        raise ValueError("a digest is not 64 hex digits")  # it becomes a path: nothing else may
    origin = document["provenance"]
    packages = tuple(Package(**package) for package in origin["packages"])
    return Manifest(
        name=check_image_name(document["name"]),
        created=document["created"],
        kernel_release=document["kernel_release"],
        files=files,
        provenance=Provenance(origin["source"], packages, dict(origin["inputs"])),
    )


def _check_blob(store: ImageStore, name: str, role: str, blob: Blob) -> Path:
    path = store.blob_path(blob.sha256)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise _damaged(name, role, path, "it is missing") from None
    if size != blob.bytes:
        raise _damaged(name, role, path, f"{size} bytes instead of {blob.bytes}")
    return path


def _damaged(name: str, role: str, path: Path, what: str) -> HostFault:
    return HostFault(
        f"image {name!r}: {role} at {path} is damaged ({what}); `{BUILD_COMMAND} --name {name} --force` repairs it"
    )


def _check_override(role: str, path: Path) -> Path:
    variable = "NIMBUS_ROOTFS_IMAGE" if role == "rootfs" else "NIMBUS_KERNEL_IMAGE"
    if not path.is_file():
        raise HostFault(f"{variable} names {path}, which is no file: correct or unset it")
    return path
