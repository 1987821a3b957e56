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


def fetch_packages(store: ImageStore, progress: Callable[[str], None], *, ask_again: bool = False) -> Packages:
    """Choose, download what is not there, verify. `ask_again` forgets what was chosen last time."""
    private = debian.private_apt(store.cache / "apt")
    memo = store.cache / "selection.json"
    remembered = None if ask_again else _read_memo(memo, debian.fingerprint_archive(private))
    if remembered is not None and all(debian.is_fetched(deb, _folder(store)) for deb in remembered):
        return _packages(store, remembered)
    try:
        progress("asking apt for the current kernel")
        chosen = _fetch(store, Apt(), progress)
    except HostFault as error:
        progress(f"fetching package lists of our own: {error}")
        debian.refresh_lists(private)
        chosen = _fetch(store, private, progress)
    _write_memo(memo, debian.fingerprint_archive(private), chosen)
    return _packages(store, chosen)


def _fetch(store: ImageStore, apt: Apt, progress: Callable[[str], None]) -> tuple[Deb, Deb]:
    kernel = debian.find_dependency(apt, KERNEL_META, "linux-image-")
    chosen = debian.find_deb(apt, kernel), debian.find_deb(apt, BUSYBOX)
    for deb in chosen:
        progress(f"fetching {deb.package} {deb.version}")
        debian.fetch_deb(apt, deb, _folder(store))
    return chosen


def _packages(store: ImageStore, chosen: tuple[Deb, Deb]) -> Packages:
    kernel, busybox = chosen
    folder = _folder(store)
    return Packages(kernel, folder / kernel.file_name, busybox, folder / busybox.file_name)


def _folder(store: ImageStore) -> Path:
    return store.cache / "debs"


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
