"""Snapshot templates on disk: a folder for each key, published whole, never changed, set aside when damaged.

Never builds and never boots one. A template's files may be unlinked while clones run on them, since a mapping keeps
its inode; they are never truncated and never written again. Called by the template builder, by verified.py for
the agent, and by `nimbus snapshots`. Synchronous: `publish` and `verify` move gigabytes, the rest is quick.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nimbus.host.disk import free_bytes, remove_tree, write_atomically
from nimbus.model.errors import HostFault, Refused
from nimbus.model.template import TemplateKey, is_digest, plan_gc
from nimbus.storage.content import fsync_path
from nimbus.storage.templatefolder import (
    BUILD_COMMAND,
    FILES,
    DamagedTemplate,
    OnRead,
    Template,
    TemplateFiles,
    fill_folder,
    read_generation,
    read_template,
    verify_template,
)

# What the builder, the agent and the command need of templates, they find here.
__all__ = [
    "BUILD_COMMAND",
    "FILES",
    "DamagedTemplate",
    "Garbage",
    "OnRead",
    "Quarantined",
    "Template",
    "TemplateFiles",
    "TemplateStore",
]

RESERVE_BYTES = 256 << 20  # a template only saves time: it never takes the disk's last room
QUARANTINE_S = 7 * 86400.0  # long enough for somebody to look at what was set aside
_FOLDER_MODE = 0o700  # even of a guest without secrets, memory is nobody's to look at
_WHY = "why.json"


@dataclass(frozen=True)
class Quarantined:
    """A template that was set aside, and why."""

    digest: str
    why: str
    at: float  # Unix seconds


@dataclass(frozen=True)
class Garbage:
    """What a gc removed, or would remove."""

    templates: tuple[Template, ...]
    quarantined: tuple[Quarantined, ...]
    unfinished: int  # folders of builders that were killed


@dataclass(frozen=True)
class TemplateStore:
    """`<state root>/templates`, all on one file system."""

    root: Path

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def aside(self) -> Path:
        return self.root / "quarantine"

    def publish(self, key: TemplateKey, files: TemplateFiles) -> Template:
        """Copy the files in under the key's digest, in the place of a template that had it. Raises HostFault."""
        folder = self.root / key.digest()
        try:
            self._check_room(files)
            with self.staged_folder() as staged:
                fill_folder(staged, key, files)
                with self._changing():
                    self._discard(folder)
                    staged.rename(folder)
                    fsync_path(self.root, os.O_RDONLY | os.O_DIRECTORY)
                    return read_template(folder)
        except OSError as error:
            raise HostFault(f"cannot keep a snapshot template in {self.root}: {error.strerror or error}") from error

    def find(self, digest: str) -> Template | None:
        """The template of that digest: a few stats, no byte of its memory. Raises DamagedTemplate for a wreck."""
        if not is_digest(digest):
            raise Refused(f"{digest!r} is no digest of a snapshot template")
        folder = self.root / digest
        while (found := self._look(folder)) is not None:
            try:
                if not stat.S_ISDIR(found.st_mode):
                    raise DamagedTemplate(digest, "its folder is none")
                return read_template(folder)
            except DamagedTemplate:
                now = self._look(folder)
                if now is not None and now.st_ino == found.st_ino:
                    raise  # and not that another process has just built it again, or removed it
        return None

    def digests(self) -> tuple[str, ...]:
        """The names of all that are here, wrecks among them."""
        return self._names(self.root)

    def list_templates(self) -> tuple[Template, ...]:
        """Those that `find` finds sound, newest first."""
        found = []
        for digest in self.digests():
            with suppress(DamagedTemplate):
                template = self.find(digest)
                if template is not None:  # somebody may have removed it since
                    found.append(template)
        return tuple(sorted(found, key=lambda one: (one.created_at, one.digest), reverse=True))

    def verify(self, template: Template, on_read: OnRead | None = None) -> None:
        """Read every byte and compare. Raises DamagedTemplate naming the file that is not what it was."""
        verify_template(template, on_read)

    def quarantine(self, digest: str, why: str, *, generation: str | None = None) -> bool:
        """Set the template aside, so that the next boot is cold. False when it is gone, or built again since.

        With `generation` only that one: what another process built meanwhile is not what was found damaged.
        """
        folder, target = self.root / digest, self.aside / digest
        with self._changing():
            if generation is not None and read_generation(folder) not in (generation, None):
                return False
            if self._look(folder) is None:
                return False  # set aside already, perhaps: what is there to be looked at stays
            self._discard(target)  # one of each digest is enough to look at
            self.aside.mkdir(exist_ok=True, mode=_FOLDER_MODE)
            try:
                folder.rename(target)
            except FileNotFoundError:
                return False
            with suppress(OSError):  # no room for a word, or a link in the folder's place: set aside it is
                if not target.is_symlink():
                    write_atomically(target / _WHY, json.dumps({"why": why, "at": time.time()}).encode(), fsync=False)
        return True

    def quarantined(self) -> tuple[Quarantined, ...]:
        """What was set aside, newest first."""
        found = [_read_why(self.aside / name) for name in self._names(self.aside)]
        return tuple(sorted(found, key=lambda one: (one.at, one.digest), reverse=True))

    def remove(self, digest: str) -> bool:
        """Remove that template; its clones go on. False when there was none."""
        with self._changing():
            return self._discard(self.root / digest)

    def remove_quarantined(self, digest: str) -> bool:
        """Remove what was set aside under that digest. False when there was none."""
        with self._changing():
            return self._discard(self.aside / digest)

    def gc(
        self, *, keep: int, in_use: Collection[str] = (), oldest: float | None = None, dry_run: bool = False
    ) -> Garbage:
        """Remove what `plan_gc` gives up, what was set aside long ago, and what killed builders left.

        `oldest` is a Unix time. With `dry_run` nothing is removed, and killed builders' folders are not counted.
        """
        aside_before = max(time.time() - QUARANTINE_S, oldest or 0.0)
        garbage = Garbage(
            plan_gc(self.list_templates(), keep=keep, in_use=in_use, oldest=oldest),
            tuple(one for one in self.quarantined() if one.at < aside_before),
            0,
        )
        if dry_run:
            return garbage
        for template in garbage.templates:
            self.remove(template.digest)
        for wreck in garbage.quarantined:
            self.remove_quarantined(wreck.digest)
        return replace(garbage, unfinished=self.sweep())

    def sweep(self) -> int:
        """Remove what killed builders left; returns how many. A living builder holds the lock of its folder."""
        if not self.staging.is_dir():
            return 0
        with self._changing():
            return sum(_sweep_folder(path) for path in sorted(self.staging.iterdir()))

    @contextmanager
    def staged_folder(self) -> Iterator[Path]:
        """An empty folder below the store that vanishes unless it is renamed; locked, so that a sweep spares it."""
        with self._changing():
            self.staging.mkdir(exist_ok=True, mode=_FOLDER_MODE)
            path = self.staging / secrets.token_hex(8)
            path.mkdir(mode=_FOLDER_MODE)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            remove_tree(path)
            os.close(fd)

    def _check_room(self, files: TemplateFiles) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
        wanted = sum(path.lstat().st_blocks * 512 for path in (files.memory, files.state, files.overlay))
        free = free_bytes(self.root)
        if free < wanted + RESERVE_BYTES:
            raise HostFault(
                f"disk full: {free >> 20} MiB free at {self.root}, a snapshot template takes {wanted >> 20} and "
                f"{RESERVE_BYTES >> 20} are kept"
            )

    def _discard(self, path: Path) -> bool:
        """Remove a folder, at once for all who look for it. The lock is held, so no sweep meets it on its way out."""
        self.staging.mkdir(exist_ok=True, mode=_FOLDER_MODE)
        trash = self.staging / secrets.token_hex(8)
        try:
            path.rename(trash)
        except FileNotFoundError:
            return False
        remove_tree(trash)
        return True

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change of the store at a time, among processes and among threads: each locks a description of its own."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)
        except PermissionError:
            raise self._unreadable() from None
        except OSError as error:
            raise HostFault(
                f"cannot change the snapshot templates in {self.root}: {error.strerror or error}"
            ) from error

    def _look(self, folder: Path) -> os.stat_result | None:
        try:
            return folder.lstat()
        except FileNotFoundError:
            return None
        except PermissionError:
            raise self._unreadable() from None

    def _names(self, folder: Path) -> tuple[str, ...]:
        try:
            return tuple(sorted(name for name in os.listdir(folder) if is_digest(name)))
        except FileNotFoundError:
            return ()
        except PermissionError:
            raise self._unreadable() from None

    def _unreadable(self) -> HostFault:
        return HostFault(f"the snapshot templates in {self.root} are not this user's: run as the owner of that folder")


def _sweep_folder(path: Path) -> bool:
    """Remove a staging folder that no living process holds. The store's lock is held."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # its builder has just given up
        return False
    except NotADirectoryError:  # no builder makes one
        remove_tree(path)
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        remove_tree(path)
        return True
    finally:
        os.close(fd)


def _read_why(folder: Path) -> Quarantined:
    """A wreck's own words, as far as they can be had."""
    try:
        told = json.loads((folder / _WHY).read_bytes())
        return Quarantined(folder.name, str(told["why"]), float(told["at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Quarantined(folder.name, "nobody wrote down why", 0.0)
