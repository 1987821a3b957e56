"""Fetches what a release list names, checks all of it, and only then installs: programs as files, the rest as an image.

Never installs a part of a list: the first thing that is not as it should be ends the fetch with nothing changed but a
download that the next fetch goes on with. Called by `nimbus assets fetch`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nimbus.model.errors import Conflict, HostFault, Refused
from nimbus.rootfs import activate, programs
from nimbus.rootfs.activate import Parts
from nimbus.rootfs.build import INIT_PROGRAM
from nimbus.rootfs.download import Source, fetch_file, fetch_text
from nimbus.rootfs.programs import Installed
from nimbus.rootfs.releases import PROGRAMS, Download, ReleaseList, check_url, parse_release_list
from nimbus.rootfs.unpack import unpack_members
from nimbus.runtime.threads import ThreadLane
from nimbus.storage.content import ImageStore, hash_file
from nimbus.storage.images import Manifest, Package, Provenance, read_manifest

_LIST_MAX_BYTES = 1 << 20
_LEFTOVERS = "unpacked-"


@dataclass(frozen=True)
class Fetch:
    """Which list, where to, and whom to tell."""

    place: str  # a file's path, or an address
    store: ImageStore
    releases: Path
    say: Callable[[str], None]
    list_sha256: str | None = None
    force: bool = False
    init: Path = INIT_PROGRAM


@dataclass(frozen=True)
class Fetched:
    """What the list named and is there now."""

    list_sha256: str
    programs: tuple[Installed, ...]
    image: Manifest | None
    image_changed: bool


async def fetch_releases(fetch: Fetch) -> Fetched:
    """Everything of the list, or nothing. Refused, Unavailable and HostFault say who must do what."""
    lane = ThreadLane("assets", 1)
    text = await _read_list(fetch, lane)
    wanted = parse_release_list(text.decode("utf-8", "replace"), platform.machine())
    with _explained(fetch), _fetchers_lock(fetch.store) as folder:
        present = await lane.run(_find_present, fetch, wanted)
        downloads = [download for download in wanted.downloads if download not in present]
        with tempfile.TemporaryDirectory(dir=folder, prefix=_LEFTOVERS) as scratch:
            # All first: what is whole and checked stays for the next fetch where a later one breaks.
            fetched = [await fetch_file(_source(download), folder, fetch.say) for download in downloads]
            files: dict[str, Path] = {}
            for download, path in zip(downloads, fetched, strict=True):
                files |= await lane.run(_take_apart, download, path, Path(scratch))
            installed, changed = await lane.run(_install, fetch, wanted, downloads, files)
        image = await lane.run(read_manifest, fetch.store, wanted.image) if wanted.image else None
    return Fetched(hashlib.sha256(text).hexdigest(), installed, image, changed)


async def _read_list(fetch: Fetch, lane: ThreadLane) -> bytes:
    """The list's bytes. It says what is trusted, so it comes from this machine, over https, or with its own sha256."""
    if "://" in fetch.place:
        check_url(fetch.place, "the release list")
        if not fetch.place.startswith("https://") and fetch.list_sha256 is None:
            raise Refused("a release list that comes over http could be anybody's: use https, or give its --sha256")
        text = await fetch_text(Source("the release list", fetch.place, _LIST_MAX_BYTES))
    else:
        text = await lane.run(_read_file, Path(fetch.place))
    found = hashlib.sha256(text).hexdigest()
    if fetch.list_sha256 is not None and found != fetch.list_sha256:
        raise Refused(f"the release list hashes to {found} and not to the --sha256 that was given")
    return text


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_LIST_MAX_BYTES + 1)
    except OSError as error:
        raise Refused(f"the release list {path} cannot be read: {error.strerror}") from None
    if len(text) > _LIST_MAX_BYTES:
        raise Refused(f"the release list {path} is larger than {_LIST_MAX_BYTES} bytes")
    return text


def _source(download: Download) -> Source:
    return Source(download.title, download.url, download.max_bytes, download.sha256, download.redirect_hosts)


def _find_present(fetch: Fetch, wanted: ReleaseList) -> frozenset[Download]:
    """What need not be fetched: its programs are installed whole, and its part of the image is published."""
    published = wanted.image is not None and (
        activate.find_published(fetch.store, wanted.image, _provenance(fetch, wanted).source) is not None
    )
    present = set()
    for download in wanted.downloads:
        here = programs.is_installed(fetch.releases, download, replace=fetch.force)
        if here and (published or not _is_for_image(download)) and not fetch.force:
            present.add(download)
    return frozenset(present)


def _is_for_image(download: Download) -> bool:
    return any(part.role not in PROGRAMS for part in download.parts)


def _take_apart(download: Download, fetched: Path, scratch: Path) -> dict[str, Path]:
    """The download's files by role, each checked against its own sha256 where the list has one."""
    files = {part.role: scratch / part.role for part in download.parts}
    members = {part.member: files[part.role] for part in download.parts if part.member is not None}
    if members:
        unpack_members(fetched, download.title, members, download.max_bytes)
        fetched.unlink()
    else:
        (only,) = files.values()
        fetched.rename(only)
    for part in download.parts:
        if part.sha256 is not None and (found := hash_file(files[part.role]).sha256) != part.sha256:
            raise HostFault(f"{download.title}: its {part.role} hashes to {found}, and the list says {part.sha256}")
    return files


def _install(
    fetch: Fetch, wanted: ReleaseList, downloads: list[Download], files: Mapping[str, Path]
) -> tuple[tuple[Installed, ...], bool]:
    """Check everything, then let it be seen: programs a release at a time, the image with its manifest at the end."""
    arch = platform.machine()
    for role in PROGRAMS:
        if role in files:
            activate.check_elf(files[role], arch)
    image_files = {role: path for role, path in files.items() if role not in PROGRAMS}
    parts, kernel_release = None, ""
    if wanted.image is not None and image_files:
        parts = Parts(wanted.image, image_files, _provenance(fetch, wanted), _read_init(fetch, wanted))
        kernel_release = activate.check_parts(parts, arch)
    for download in downloads:
        programs.install(fetch.releases, download, files)
    changed = activate.publish_parts(fetch.store, parts, kernel_release) if parts else False
    installed = programs.find_installed(fetch.releases, wanted.downloads, fresh=downloads)
    return installed, changed


def _provenance(fetch: Fetch, wanted: ReleaseList) -> Provenance:
    """What the image is made of; equal lists and an equal nimbus-init give an equal `source`."""
    of_image = [each for each in wanted.downloads if _is_for_image(each)]
    packages = tuple(Package(each.name, each.release, each.sha256) for each in of_image)
    init = _read_init(fetch, wanted)
    inputs = {"nimbus-init": hashlib.sha256(init).hexdigest()} if init else {}
    parts = [asdict(part) for each in of_image for part in each.parts]
    text = json.dumps([[asdict(package) for package in packages], parts, inputs], sort_keys=True)
    return Provenance(hashlib.sha256(text.encode()).hexdigest(), packages, inputs)


def _read_init(fetch: Fetch, wanted: ReleaseList) -> bytes:
    """PID 1, where the initramfs is ours to make."""
    if wanted.image is None or any(part.role == "initramfs" for each in wanted.downloads for part in each.parts):
        return b""
    try:
        return fetch.init.read_bytes()
    except FileNotFoundError:
        raise HostFault(f"{fetch.init} is not there: `make build` compiles it") from None


@contextmanager
def _fetchers_lock(store: ImageStore) -> Iterator[Path]:
    """The folder of unfinished downloads, for one fetch at a time; what a killed one had unpacked is removed."""
    folder = store.cache / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("another fetch is at work in this state folder: wait for its end") from None
        for left in folder.glob(f"{_LEFTOVERS}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield folder


@contextmanager
def _explained(fetch: Fetch) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a full disk, a folder of another user
        where = error.filename or fetch.releases
        raise HostFault(
            f"cannot write {where}: {error.strerror}; is NIMBUS_STATE_DIR right, and the disk not full?"
        ) from None
