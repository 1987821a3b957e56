"""Packages of the distribution: which there are, fetched through its own client, and read without being installed.

apt verifies what it fetches against the archive's signatures; we name packages and never a server. Never installs,
never needs root. Called by `build.py`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from nimbus.model.errors import HostFault, Refused
from nimbus.storage.content import hash_file

# Or the candidate of a package that this host has installed may be the installed one, which no archive offers.
_WITHOUT_HOST = ("-o", "Dir::State::status=/dev/null")
_TOOL_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Deb:
    """One package file as the archive's signed index describes it."""

    package: str
    version: str
    file_name: str
    sha256: str


@dataclass(frozen=True)
class Apt:
    """The distribution's client, reading the machine's own lists or, where it has none, lists of ours."""

    options: tuple[str, ...] = ()
    lists: Path | None = None

    def call(self, tool: str, *arguments: str) -> tuple[str, ...]:
        return (tool, *_WITHOUT_HOST, *self.options, *arguments)


def check_platform() -> None:
    """Refused, with what to do, on a machine whose distribution we cannot build from."""
    if platform.machine() != "x86_64":
        raise Refused(f"images are built for x86_64 only, and this machine is {platform.machine()}")
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool, path=_TOOL_PATH) is None:
            raise Refused(
                f"{tool} is missing (package {package}): images are made from Debian packages. Build on Debian or "
                "Ubuntu, then copy the images folder of the state directory to this host"
            )


def private_apt(folder: Path) -> Apt:
    """A client whose lists and cache are ours, so that a plain user can refresh them."""
    options = (
        *("-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"),
        *("-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"),
    )
    return Apt(options, folder / "lists")


def fingerprint_archive(private: Apt) -> str:
    """Changes when apt's idea of the archive changes: cheap, so that a build with nothing to do asks apt nothing."""
    system = _read_places()
    paths = [system["SOURCES"], *_listing(system["PARTS"], "*"), *_listing(system["LISTS"], "*Packages*")]
    if private.lists is not None:
        paths += _listing(private.lists, "*Packages*")
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _listing(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def _read_places() -> dict[str, Path]:
    """Where this machine's apt keeps its lists and sources, which an administrator may have moved."""
    asked = ("LISTS", "Dir::State::lists/d", "SOURCES", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d")
    lines = _run(("apt-config", "shell", *asked), "say where its lists are").splitlines()
    return {key: Path(shlex.split(value)[0]) for key, _, value in (line.partition("=") for line in lines)}


def refresh_lists(apt: Apt) -> None:
    if apt.lists is not None:
        (apt.lists / "partial").mkdir(parents=True, exist_ok=True)
        (apt.lists.parent / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    _run(apt.call("apt-get", "-q", "update"), "fetch the package lists")


def find_deb(apt: Apt, package: str) -> Deb:
    """The candidate of a package. HostFault where the lists do not know it."""
    output = _run(apt.call("apt-get", "download", "--print-uris", package), f"look up {package}")
    deb = parse_print_uris(package, output)
    if deb is None:
        raise HostFault(f"apt has no candidate with a SHA256 for {package}: run `apt-get update`")
    return deb


def parse_print_uris(package: str, output: str) -> Deb | None:
    """From `'URI' FILE BYTES SHA256:HEX`; None for anything else (an archive without SHA256 is none of ours)."""
    for line in output.splitlines():
        words = line.split()
        if len(words) == 4 and words[3].startswith("SHA256:"):
            file_name = words[1]
            version = unquote(file_name.split("_")[1]) if file_name.count("_") == 2 else ""
            if version and "/" not in file_name:
                return Deb(package, version, file_name, words[3].removeprefix("SHA256:"))
    return None


def find_dependency(apt: Apt, package: str, prefix: str) -> str:
    """The one dependency of a metapackage that starts with `prefix`: which kernel `linux-image-cloud-amd64` means."""
    output = _run(apt.call("apt-cache", "depends", "--important", package), f"look up {package}")
    for line in output.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind.lstrip("|") == "Depends" and name.startswith(prefix):
            return name
    raise HostFault(f"{package} depends on no package that starts with {prefix}")


def is_fetched(deb: Deb, folder: Path) -> bool:
    path = folder / deb.file_name
    return path.is_file() and hash_file(path).sha256 == deb.sha256


def fetch_deb(apt: Apt, deb: Deb, folder: Path) -> Path:
    """The package file in `folder`, checked against the index; fetched unless it is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / deb.file_name
    if is_fetched(deb, folder):
        return path
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as name:
        exact = f"{deb.package}={deb.version}"
        _run(apt.call("apt-get", "-q", "download", exact), f"download {exact}", cwd=Path(name))
        found = Path(name) / deb.file_name
        if not found.is_file() or hash_file(found).sha256 != deb.sha256:
            raise HostFault(f"apt fetched {exact}, but not the file that its index names: run `apt-get update`")
        found.rename(path)
    return path


def read_deb(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted regular files of a package by their path, read as a stream and never unpacked on disk."""
    argv = ("dpkg-deb", "--fsys-tarfile", str(path))
    files: dict[str, bytes] = {}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    content = archive.extractfile(member) if member.isreg() and wanted(name) else None
                    if content is not None:
                        files[name] = content.read()
            process.communicate()  # what follows the archive's end, or dpkg-deb dies of a closed pipe
        except tarfile.TarError as error:
            raise HostFault(f"package {path} cannot be read ({error}): remove it and build again") from None
    if process.returncode != 0:
        raise HostFault(f"dpkg-deb cannot read {path}: remove it and build again")
    return files


def _run(argv: tuple[str, ...], purpose: str, cwd: Path | None = None) -> str:
    done = subprocess.run(  # noqa: PLW1510 - the status is looked at below, with the tool's own words
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment(), cwd=cwd
    )
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise HostFault(f"{argv[0]} could not {purpose}: {' '.join(words)[-400:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    """The caller's own (apt's proxy settings may be in it), in a language that we can read."""
    return dict(os.environ) | {"LC_ALL": "C", "PATH": _TOOL_PATH}
