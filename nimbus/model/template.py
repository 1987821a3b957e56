"""What a snapshot template is the template of: everything that must match before its memory may run again.

Pure: hashes words, never files. The store names a template's folder by the key's digest, so that a host on which
anything differs finds none and boots cold. Called by storage/templates.py, the template builder and `nimbus snapshots`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, TypeVar

from nimbus.model.vm import Shape

_FORMAT = 1  # part of the digest: a later kind of template never answers to an older key
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Cpu:
    """A host's processor, as far as a guest's saved registers and feature words depend on it."""

    vendor: str
    model_name: str
    family: str
    model: str
    stepping: str
    microcode: str
    features_sha256: str  # of the flags that the kernel shows: a boot parameter may hide some from guests


@dataclass(frozen=True)
class TemplateKey:
    """All that must be the same where a template was made and where a clone of it runs."""

    image: str
    manifest_sha256: str
    kernel_sha256: str
    initramfs_sha256: str
    rootfs_sha256: str
    backend: str
    accel: str
    vmm_version: str
    vmm_sha256: str  # of the binary: a distribution's rebuild keeps its version
    cpu: Cpu
    host_kernel: str
    shape: Shape
    recipe_sha256: str  # of the argv or API calls that made it: the devices and their order

    def __post_init__(self) -> None:
        for name, value in _leaves(self):
            if not value:
                raise ValueError(f"{name} is empty: a key with a gap would match what it does not know")
            if name.endswith("_sha256") and not _SHA256.fullmatch(str(value)):
                raise ValueError(f"{name} is not 64 hex digits")

    def digest(self) -> str:
        """The template's name: sha256 over all of this in one canonical form."""
        return _digest_json({"format": _FORMAT} | asdict(self))

    def differences(self, wanted: TemplateKey) -> tuple[str, ...]:
        """What keeps a template of this key from serving where `wanted` is needed, in words for people."""
        pairs = zip(_leaves(self), _leaves(wanted), strict=True)
        return tuple(
            f"{_WORDS[name]}: made with {_show(name, made)}, needed is {_show(name, needed)}"
            for (name, made), (_, needed) in pairs
            if made != needed
        )


# A name for people for every leaf of a key; a test finds the one that is missing.
_WORDS = {
    "image": "image",
    "manifest_sha256": "manifest of the image",
    "kernel_sha256": "guest kernel",
    "initramfs_sha256": "initramfs",
    "rootfs_sha256": "root disk",
    "backend": "VMM",
    "accel": "acceleration",
    "vmm_version": "version of the VMM",
    "vmm_sha256": "binary of the VMM",
    "vendor": "vendor of the CPU",
    "model_name": "CPU",
    "family": "family of the CPU",
    "model": "model of the CPU",
    "stepping": "stepping of the CPU",
    "microcode": "microcode",
    "features_sha256": "features of the CPU",
    "host_kernel": "kernel of the host",
    "cpus": "vCPUs",
    "mem_mib": "memory in MiB",
    "disk_mib": "disk in MiB",
    "recipe_sha256": "way the VM is started",
}


def digest_recipe(words: Iterable[str]) -> str:
    """sha256 of an argv or a list of API calls; no two lists of words have the same."""
    return _digest_json(list(words))


def is_digest(text: str) -> bool:
    """Whether that can name a template: it becomes a path, so nothing else may."""
    return _SHA256.fullmatch(text) is not None


def render_key(key: TemplateKey) -> dict[str, object]:
    """The key as JSON holds it."""
    return asdict(key)


def parse_key(document: Mapping[str, Any]) -> TemplateKey:
    """The key of a JSON document. Raises ValueError, TypeError, KeyError or Refused where it is none."""
    plain = {field.name: document[field.name] for field in fields(TemplateKey)}
    if set(plain) != set(document):
        raise ValueError(f"unknown in a key: {', '.join(sorted(set(document) - set(plain)))}")
    cpu, shape = Cpu(**document["cpu"]), Shape(**document["shape"])
    texts = {name: value for name, value in plain.items() if name not in ("cpu", "shape")}
    if not all(isinstance(value, str) for value in (*texts.values(), *asdict(cpu).values())):
        raise TypeError("a word of the key is no text")
    return TemplateKey(**(plain | {"cpu": cpu, "shape": shape}))


class Kept(Protocol):
    """What `plan_gc` must know of a template."""

    @property
    def digest(self) -> str: ...
    @property
    def key(self) -> TemplateKey: ...
    @property
    def created_at(self) -> float: ...


AnyKept = TypeVar("AnyKept", bound=Kept)


def plan_gc(
    templates: Iterable[AnyKept], *, keep: int, in_use: Collection[str] = (), oldest: float | None = None
) -> tuple[AnyKept, ...]:
    """Which of them to remove: all but the `keep` newest of each image and shape, and those made before `oldest`.

    What is in `in_use` stays, however old it is.
    """
    kept: dict[tuple[str, Shape], int] = {}
    gone = []
    for template in sorted(templates, key=lambda one: (one.created_at, one.digest), reverse=True):
        kind = (template.key.image, template.key.shape)
        kept[kind] = kept.get(kind, 0) + 1
        old = kept[kind] > keep or (oldest is not None and template.created_at < oldest)
        if old and template.digest not in in_use:
            gone.append(template)
    return tuple(gone)


def _leaves(key: TemplateKey) -> Iterable[tuple[str, object]]:
    for name, value in asdict(key).items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield name, value


def _show(name: str, value: object) -> str:
    return f"{str(value)[:_SHOWN_DIGITS]}…" if name.endswith("_sha256") else str(value)


def _digest_json(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
