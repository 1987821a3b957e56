"""The release list: which files an operator trusts, by address and sha256, and what each becomes. Pure: text to values.

Never guesses: an unknown key is refused, and so is a digest that nobody filled in. The format is shown by
deploy/assets.example.toml. Called by `fetch.py`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nimbus.model.errors import Refused
from nimbus.storage.images import ROLES, check_image_name

LIST_VERSION = 1
PROGRAMS = ("firecracker", "jailer")  # installed as files; every other role is a part of an image
MAX_MIB_DEFAULT = 1024
_MAX_MIB = 1 << 16
_MIB = 1 << 20

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HOST = re.compile(r"[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?")
_DOWNLOAD_KEYS = frozenset({"name", "release", "arch", "url", "sha256", "max_mib", "redirect_hosts", "files"})


@dataclass(frozen=True)
class Part:
    """One file of a download. `member` is its path in the archive; None: the download is the file."""

    role: str
    member: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Download:
    """One thing to fetch: pinned by the sha256 of exactly what the server sends."""

    name: str
    release: str
    url: str
    sha256: str
    max_bytes: int
    redirect_hosts: frozenset[str]
    parts: tuple[Part, ...]

    @property
    def title(self) -> str:
        return f"{self.name} {self.release}"


@dataclass(frozen=True)
class ReleaseList:
    """What this machine takes of a list. `image` names the image that kernel and rootfs become, where there are any."""

    downloads: tuple[Download, ...]
    image: str | None


def parse_release_list(text: str, arch: str) -> ReleaseList:
    """The list without what is for other machines. Refused names the first thing in it that cannot be meant."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Refused(f"the release list is no TOML: {error}") from None
    _check_keys(document, {"version", "image", "download"}, "the release list")
    if document.get("version") != LIST_VERSION:
        raise Refused(f"the release list must say version = {LIST_VERSION}")
    listed = [_parse_download(raw, at) for at, raw in enumerate(_tables(document, "download", "the release list"), 1)]
    downloads = tuple(download for for_arch, download in listed if for_arch in {None, arch})
    if not downloads:
        raise Refused(f"the release list holds nothing for {arch}")
    roles = [part.role for download in downloads for part in download.parts]
    _check_once(roles, "role")
    _check_once([f"{download.name}-{download.release}" for download in downloads], "release")
    return ReleaseList(downloads, _parse_image(document.get("image"), frozenset(roles) - set(PROGRAMS)))


def _parse_image(raw: object, roles: frozenset[str]) -> str | None:
    if not roles:
        return None
    if not isinstance(raw, dict):
        raise Refused(f"the release list has a {min(roles)} and does not say which image it is for: [image] name = …")
    _check_keys(raw, {"name"}, "[image]")
    if "rootfs" not in roles or not roles & {"vmlinux", "vmlinuz"}:
        raise Refused(f"an image needs a rootfs and a vmlinux or vmlinuz; the list has {', '.join(sorted(roles))}")
    return check_image_name(_text(raw, "name", "[image]"))


def _parse_download(raw: Mapping[str, Any], number: int) -> tuple[str | None, Download]:
    where = f"download {number} of the release list"
    _check_keys(raw, _DOWNLOAD_KEYS, where)
    name = _matching(_text(raw, "name", where), _NAME, "name", where)
    where = f"download {name!r} of the release list"
    max_mib = raw.get("max_mib", MAX_MIB_DEFAULT)
    if type(max_mib) is not int or not 1 <= max_mib <= _MAX_MIB:
        raise Refused(f"{where}: max_mib must be a number from 1 to {_MAX_MIB}")
    download = Download(
        name=name,
        release=_matching(_text(raw, "release", where), _RELEASE, "release", where),
        url=check_url(_text(raw, "url", where), where),
        sha256=_digest(raw, where),
        max_bytes=max_mib * _MIB,
        redirect_hosts=frozenset(_parse_hosts(raw.get("redirect_hosts", []), where)),
        parts=tuple(_parse_part(part, where) for part in _tables(raw, "files", where)),
    )
    if len(download.parts) > 1 and any(part.member is None for part in download.parts):
        raise Refused(f"{where}: with more than one file, each must name its member of the archive")
    return _text(raw, "arch", where) if "arch" in raw else None, download


def _parse_part(raw: Mapping[str, Any], where: str) -> Part:
    _check_keys(raw, {"role", "member", "sha256"}, f"a file of {where}")
    role = _text(raw, "role", where)
    if role not in {*PROGRAMS, *ROLES}:
        raise Refused(f"{where}: {role!r} is no role; there are {', '.join((*PROGRAMS, *ROLES))}")
    member = _text(raw, "member", where) if "member" in raw else None
    return Part(role, member, _digest(raw, where) if "sha256" in raw else None)


def _parse_hosts(raw: object, where: str) -> Iterable[str]:
    if not isinstance(raw, list) or not all(isinstance(host, str) and _HOST.fullmatch(host) for host in raw):
        raise Refused(
            f"{where}: redirect_hosts must be a list of host names in lower case, with a port where it is odd"
        )
    return raw


def check_url(url: str, where: str) -> str:
    """The address itself, where it is one that we fetch from. It is not repeated: it may hold a secret."""
    try:
        parts = urlsplit(url)
        odd = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:
        odd = True
    if odd or any(ord(sign) <= 0x20 for sign in url):
        raise Refused(f"{where}: its url must be an http or https address")
    if parts.username is not None or parts.password is not None:
        raise Refused(f"{where}: its url must hold no user name and no password")
    return url


def _digest(raw: Mapping[str, Any], where: str) -> str:
    text = _text(raw, "sha256", where)
    if not _SHA256.fullmatch(text):
        raise Refused(
            f"{where}: sha256 must be 64 hex digits in lower case; take it from where the release is published"
        )
    return text


def _text(raw: Mapping[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise Refused(f"{where}: {key} must be a text")
    return value


def _matching(text: str, pattern: re.Pattern[str], key: str, where: str) -> str:
    if not pattern.fullmatch(text):
        raise Refused(f"{where}: {key} must be 1 to 63 of letters, digits, '.', '_' and '-'")
    return text


def _tables(raw: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    value = raw.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise Refused(f"{where}: {key} must be a list of tables, at least one")
    return value


def _check_keys(raw: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    unknown = sorted(set(raw) - set(known))
    if unknown:
        raise Refused(f"{where}: {unknown[0]!r} is no key; there are {', '.join(sorted(known))}")


def _check_once(names: list[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Refused(f"the release list names the {what} {twice[0]!r} twice for this machine")
