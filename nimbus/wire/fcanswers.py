"""What Firecracker answers, as values: versions, how a VM stands, why a call was refused, the vsock's word.

Pure. The VMM may be in the hands of its guest, so every byte of it is checked, and no text of it reaches a terminal as
it came. Called by host_agent/vmm/fcapi.py and firecracker.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nimbus.model.errors import HostFault
from nimbus.wire.firecracker import Version

MAX_FAULT_CHARS = 2_000
_INSTANCE_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(-[A-Za-z0-9.-]{1,32})?")
_CONNECTED = re.compile(rb"OK [0-9]{1,10}\n")


def parse_version(text: str) -> Version:
    """ "1.16.1" or "1.17.0-dev" as a Version."""
    found = _VERSION.fullmatch(text)
    if found is None:
        raise HostFault(f"{tame(text[:64])!r} is no version of Firecracker")
    return Version(int(found[1]), int(found[2]), int(found[3]))


def parse_version_answer(body: bytes) -> Version:
    """What `ask_version` is answered with."""
    match _parse_json(body, "GET /version"):
        case {"firecracker_version": str(text)}:
            return parse_version(text)
    raise HostFault("Firecracker's answer to GET /version names no version")


@dataclass(frozen=True)
class InstanceInfo:
    """Which VM answers, and how far it is."""

    id: str
    state: Literal["Not started", "Running", "Paused"]
    version: Version


def parse_instance(body: bytes) -> InstanceInfo:
    """What `describe_instance` is answered with."""
    match _parse_json(body, "GET /"):
        case {"id": str(name), "state": "Not started" | "Running" | "Paused" as state, "vmm_version": str(text)}:
            if _INSTANCE_ID.fullmatch(name):
                return InstanceInfo(name, state, parse_version(text))
    raise HostFault("Firecracker's answer to GET / describes no instance")


def parse_fault(body: bytes) -> str:
    """Why a call was refused, as one printable line. HostFault where there is no word why.

    What the HTTP server below the API refuses comes as `error`, with raw line ends that are no JSON.
    """
    match _parse_json(body, "a refused call", strict=False):
        case {"fault_message": str(text)} | {"error": str(text)}:
            return tame(text[:MAX_FAULT_CHARS])
    raise HostFault("Firecracker refused a call without a word why")


def parse_config(body: bytes) -> Mapping[str, object]:
    """What `ask_config` is answered with."""
    config = _parse_json(body, "GET /vm/config")
    if not isinstance(config, dict):
        raise HostFault("Firecracker's answer to GET /vm/config is no object")
    return config


def parse_connected(line: bytes) -> None:
    """Nothing where the guest took the connection; HostFault for another line."""
    if not _CONNECTED.fullmatch(line):
        raise HostFault(f"Firecracker's vsock answered {line[:64]!r}")


def tame(text: str) -> str:
    """The text with what no terminal should see spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def _parse_json(body: bytes, what: str, *, strict: bool = True) -> object:
    try:
        return json.loads(body, strict=strict)
    except (ValueError, RecursionError):
        raise HostFault(f"Firecracker's answer to {what} is not JSON") from None
