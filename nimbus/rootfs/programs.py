"""Installed programs: a folder for each release, which appears whole, in one rename. Never replaces one unasked.

`<state>/releases/firecracker-v1.2.3/` holds the files and `release.json`, which says what they are and whence.
Called by `fetch.py`, under its lock.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nimbus.model.errors import Conflict
from nimbus.rootfs.releases import PROGRAMS, Download
from nimbus.storage.content import Blob, hash_file

_NOTE = "release.json"
_NOTE_VERSION = 1
_FOLDER_MODE = _PROGRAM_MODE = 0o755  # read and run by all, written by the owner: root, where root fetched it
_NOTE_MODE = 0o644
_LEFTOVERS = ".fetch-"


@dataclass(frozen=True)
class Installed:
    """One release as it lies on this host."""

    name: str
    release: str
    folder: Path
    files: Mapping[str, Blob]
    changed: bool


def install(releases: Path, download: Download, files: Mapping[str, Path]) -> None:
    """Make the release's folder of checked files. Without programs in the download there is nothing to do."""
    roles = _program_roles(download)
    if not roles:
        return
    target = _folder(releases, download)
    releases.mkdir(parents=True, exist_ok=True)
    for left in releases.glob(f"{_LEFTOVERS}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=releases, prefix=_LEFTOVERS) as scratch:
        made = Path(scratch) / "new"
        made.mkdir()
        blobs = {role: _put(files[role], made / role) for role in roles}
        note = {"version": _NOTE_VERSION, "url": download.url.partition("?")[0], "sha256": download.sha256}
        document = note | {"files": {role: asdict(blob) for role, blob in blobs.items()}}
        (made / _NOTE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        (made / _NOTE).chmod(_NOTE_MODE)
        made.chmod(_FOLDER_MODE)
        _fsync(made / _NOTE)
        _fsync(made)
        if target.exists():  # damaged, or to be replaced: between the two renames there is none, never a half
            target.rename(Path(scratch) / "old")
        made.rename(target)
        _fsync(releases)


def is_installed(releases: Path, download: Download, *, replace: bool) -> bool:
    """Whether every program of the download lies there as it was installed. Conflict where others lie there."""
    roles = _program_roles(download)
    if not roles:
        return True
    folder = _folder(releases, download)
    if not folder.exists():
        return False
    note = _read_note(folder)
    if not replace and (note is None or note["sha256"] != download.sha256):
        raise Conflict(
            f"{folder} holds another {download.title} than the list names: remove it, or replace it with --force"
        )
    return (
        note is not None and note["sha256"] == download.sha256 and all(_is_sound(folder, note, role) for role in roles)
    )


def find_installed(releases: Path, downloads: Iterable[Download], fresh: Iterable[Download]) -> tuple[Installed, ...]:
    """What is there of these, for a person and for programs."""
    new = set(fresh)
    found = []
    for download in downloads:
        roles = _program_roles(download)
        if roles:
            folder = _folder(releases, download)
            files = {role: hash_file(folder / role) for role in roles}
            found.append(Installed(download.name, download.release, folder, files, download in new))
    return tuple(found)


def _program_roles(download: Download) -> tuple[str, ...]:
    return tuple(part.role for part in download.parts if part.role in PROGRAMS)


def _folder(releases: Path, download: Download) -> Path:
    return releases / f"{download.name}-{download.release}"


def _put(source: Path, target: Path) -> Blob:
    shutil.copyfile(source, target)  # and no rename: the image store may be another file system
    target.chmod(_PROGRAM_MODE)
    _fsync(target)
    return hash_file(target)


def _read_note(folder: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((folder / _NOTE).read_bytes())
        known = note["version"] == _NOTE_VERSION and isinstance(note["sha256"], str) and isinstance(note["files"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if known else None


def _is_sound(folder: Path, note: Mapping[str, Any], role: str) -> bool:
    path = folder / role
    try:
        return asdict(hash_file(path)) == note["files"].get(role) and path.stat().st_mode & 0o777 == _PROGRAM_MODE
    except OSError:
        return False


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
