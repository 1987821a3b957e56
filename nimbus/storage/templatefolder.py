"""One snapshot template's folder: its files, its manifest, and whether they are what they were when it was published.

Knows no store: templates.py beside it says where folders lie and moves them. Nothing here changes a published file.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nimbus.model.errors import HostFault, Refused
from nimbus.model.template import TemplateKey, is_digest, parse_key, render_key
from nimbus.model.vm import Shape
from nimbus.storage.content import fsync_path
from nimbus.storage.sparse import copy_without_zeros, digest_sparse

MANIFEST_VERSION = 1
BUILD_COMMAND = "nimbus snapshots build"
MEMORY, STATE, OVERLAY = FILES = ("memory", "state", "overlay.img")

_MANIFEST = "manifest.json"
_MANIFEST_BYTES_MAX = 1 << 20
_FILE_MODE = 0o444  # a VMM reads them under its VM's own uid; nobody writes them
_SHOWN_DIGITS = 12

OnRead = Callable[[str, int], None]  # called with a file's name and how far it was read; may raise to stop


@dataclass(frozen=True)
class TemplateFiles:
    """What the VMM of a template's VM left in that VM's folder."""

    memory: Path
    state: Path
    overlay: Path


@dataclass(frozen=True)
class Part:
    """One file of a template. Its digest says nothing about holes, and takes no time for them: see sparse.py."""

    digest: str
    bytes: int


@dataclass(frozen=True)
class Template:
    """A published template: its files exist with the sizes that its manifest promises."""

    digest: str
    generation: str  # tells a template that was built again from the one before
    folder: Path
    key: TemplateKey
    created_at: float  # Unix seconds
    touched_bytes: int  # of its memory, what is not zero
    files: Mapping[str, Part]

    @property
    def memory(self) -> Path:
        return self.folder / MEMORY

    @property
    def state(self) -> Path:
        return self.folder / STATE

    @property
    def overlay(self) -> Path:
        return self.folder / OVERLAY

    @property
    def shape(self) -> Shape:
        return self.key.shape


class DamagedTemplate(HostFault):
    """A template that is not what it was when it was published."""

    def __init__(self, digest: str, what: str, generation: str | None = None) -> None:
        super().__init__(f"snapshot template {digest[:_SHOWN_DIGITS]} is damaged: {what}")
        self.digest = digest
        self.what = what
        self.generation = generation  # None: so damaged that it cannot be told


def fill_folder(folder: Path, key: TemplateKey, files: TemplateFiles) -> None:
    """Make the empty folder a template of these files, safe on disk. Raises OSError, or HostFault for what is no file.

    They are copied, not moved: whoever made them may still have them open for writing.
    """
    sources = dict(zip(FILES, (files.memory, files.state, files.overlay), strict=True))
    written = {name: _copy_in(source, folder / name) for name, source in sources.items()}
    manifest = {
        "version": MANIFEST_VERSION,
        "generation": secrets.token_hex(8),
        "created_at": time.time(),
        "key": render_key(key),
        "touched_bytes": written[MEMORY],
        "files": {name: asdict(_read_part(folder / name, name, None)) for name in FILES},
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    for name in (*FILES, _MANIFEST):
        (folder / name).chmod(_FILE_MODE)
        fsync_path(folder / name, os.O_RDONLY)
    fsync_path(folder, os.O_RDONLY | os.O_DIRECTORY)


def read_template(folder: Path) -> Template:
    """The template in the folder of that name, by a few stats. Raises DamagedTemplate for anything else."""
    digest = folder.name
    try:
        owner = folder.lstat().st_uid
        template = _parse_manifest(folder, _read_manifest(folder))
    except OSError as error:
        raise DamagedTemplate(digest, f"its manifest cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Refused) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DamagedTemplate(digest, f"its manifest cannot be understood ({what})") from None
    for name, promised in template.files.items():
        _check_file(template, name, promised.bytes, owner)
    return template


def read_generation(folder: Path) -> str | None:
    """Which generation of its template lies there; None where that cannot be told."""
    try:
        return str(_read_manifest(folder)["generation"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@dataclass(frozen=True)
class Marks:
    """What is another as soon as a file of a template is. Nobody sets a ctime, but a hard link moves it too."""

    identity: tuple[object, ...]
    ctimes: tuple[int, ...]


def read_marks(template: Template) -> Marks:
    """The marks as of now. Raises DamagedTemplate where a file has gone."""
    try:
        found = [(template.folder / name).lstat() for name in template.files]
    except OSError as error:
        raise _damaged(template, f"a file of it went away ({error.strerror})") from error
    files = tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found)
    return Marks((template.generation, files), tuple(one.st_ctime_ns for one in found))


def verify_template(template: Template, on_read: OnRead | None = None) -> None:
    """Read every byte and compare. Raises DamagedTemplate naming the file that is not what it was."""
    for name, promised in template.files.items():
        try:
            found = _read_part(template.folder / name, name, on_read)
        except OSError as error:
            raise _damaged(template, f"{name} cannot be read ({error.strerror})") from error
        if found != promised:
            shown = f"{found.digest[:_SHOWN_DIGITS]}…, not {promised.digest[:_SHOWN_DIGITS]}…"
            raise _damaged(template, f"{name} hashes to {shown}")


def _copy_in(source: Path, target: Path) -> int:
    """A copy with its holes, and with one for every block of zeros; returns how many bytes are none.

    The source's folder belongs to a VM's uid: no link is followed, and nothing but a file is opened.
    """
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise HostFault(f"{source.name} of the template's VM is no file")
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return copy_without_zeros(Path(f"/proc/self/fd/{fd}"), target)
    finally:
        os.close(fd)


def _read_manifest(folder: Path) -> Any:
    fd = os.open(folder / _MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return json.loads(file.read(_MANIFEST_BYTES_MAX))


def _parse_manifest(folder: Path, document: Any) -> Template:
    if document["version"] != MANIFEST_VERSION:
        raise ValueError(f"version {document['version']} is not {MANIFEST_VERSION}")
    key = parse_key(document["key"])
    if key.digest() != folder.name:
        raise ValueError("it is the manifest of another key")
    parts = {name: document["files"][name] for name in FILES}
    files = {name: Part(str(part["digest"]), int(part["bytes"])) for name, part in parts.items()}
    if not all(is_digest(part.digest) for part in files.values()):
        raise ValueError("a digest is not 64 hex digits")
    return Template(
        digest=folder.name,
        generation=str(document["generation"]),
        folder=folder,
        key=key,
        created_at=float(document["created_at"]),
        touched_bytes=int(document["touched_bytes"]),
        files=files,
    )


def _check_file(template: Template, name: str, size: int, owner: int) -> None:
    """What a stat can tell. A file given to a VM's uid could be written by its VMM: all clones would run that."""
    try:
        found = (template.folder / name).lstat()
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be seen ({error.strerror})"
        raise _damaged(template, f"{name} {what}") from None
    if not stat.S_ISREG(found.st_mode):
        raise _damaged(template, f"{name} is no file")
    if found.st_size != size:
        raise _damaged(template, f"{name} has {found.st_size} bytes instead of {size}")
    if found.st_uid != owner or stat.S_IMODE(found.st_mode) & 0o222:
        raise _damaged(template, f"{name} could be written by uid {found.st_uid}")


def _damaged(template: Template, what: str) -> DamagedTemplate:
    return DamagedTemplate(template.digest, what, template.generation)


def _read_part(path: Path, name: str, on_read: OnRead | None) -> Part:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return Part(digest_sparse(fd, partial(on_read, name) if on_read else None), os.fstat(fd).st_size)
    finally:
        os.close(fd)
