"""Chooses and fetches the distribution packages of an image. Asks apt only when apt's lists have changed.

Called by `build.py`. Works from the machine's own lists; where those are empty, too old, or not ours to refresh,
from lists of our own below the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nimbus.model.errors import HostFault
from nimbus.rootfs import debian
from nimbus.rootfs.debian import Apt, Deb
from nimbus.storage.content import ImageStore

KERNEL_META = "linux-image-cloud-amd64"  # always depends on the newest cloud kernel
BUSYBOX = "busybox-static"
_FORMAT = 1


@dataclass(frozen=True)
class Packages:
    """The package files of one build, present and verified."""

    kernel: Deb
    kernel_path: Path
    busybox: Deb
    busybox_path: Path


def fetch_packages(store: ImageStore, progress: Callable[[str], None]) -> Packages:
    """Choose, download what is not there, verify."""
    private = store.cache / "apt"
    memo = store.cache / "selection.json"
    fingerprint = debian.fingerprint_lists(Apt().lists, private / "lists")
    remembered = _read_memo(memo, fingerprint)
    if remembered is not None and all((store.cache / "debs" / deb.file_name).is_file() for deb in remembered):
        return _fetch(store, Apt(), remembered, lambda _: None)
    try:
        progress("asking apt for the current kernel")
        apt = Apt()
        chosen = _choose(apt)
        packages = _fetch(store, apt, chosen, progress)
    except HostFault as error:
        progress(f"fetching package lists of our own ({error})")
        apt = debian.private_apt(private)
        debian.refresh_lists(apt)
        chosen = _choose(apt)
        packages = _fetch(store, apt, chosen, progress)
    fingerprint = debian.fingerprint_lists(Apt().lists, private / "lists")
    _write_memo(memo, fingerprint, chosen)
    return packages


def _choose(apt: Apt) -> tuple[Deb, Deb]:
    kernel = debian.find_dependency(apt, KERNEL_META, "linux-image-")
    return debian.find_deb(apt, kernel), debian.find_deb(apt, BUSYBOX)


def _fetch(store: ImageStore, apt: Apt, chosen: tuple[Deb, Deb], progress: Callable[[str], None]) -> Packages:
    paths = []
    for deb in chosen:
        progress(f"fetching {deb.package} {deb.version}")
        paths.append(debian.fetch_deb(apt, deb, store.cache / "debs"))
    return Packages(chosen[0], paths[0], chosen[1], paths[1])


def _read_memo(path: Path, fingerprint: str) -> tuple[Deb, Deb] | None:
    """What was chosen when apt's lists were the same as now; None where that cannot be said."""
    try:
        document = json.loads(path.read_bytes())
        if (document["version"], document["fingerprint"]) != (_FORMAT, fingerprint):
            return None
        kernel, busybox = (Deb(**fields) for fields in document["debs"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # a cache: what cannot be read is made again
    return kernel, busybox


def _write_memo(path: Path, fingerprint: str, chosen: tuple[Deb, Deb]) -> None:
    document = {"version": _FORMAT, "fingerprint": fingerprint, "debs": [asdict(deb) for deb in chosen]}
    partial = path.with_suffix(".partial")  # the builder's lock keeps a second writer away
    partial.write_text(json.dumps(document))
    partial.replace(path)
