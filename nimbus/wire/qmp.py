"""QEMU's machine protocol (QMP): commands out, answers and events in. One JSON value a line, UTF-8.

Sans-IO. What comes in is a process's that a hostile guest may have taken over: lines are bounded, and whatever is no
QMP is a HostFault. Source: QEMU's docs/interop/qmp-spec. Called by host_agent/vmm/qmpclient.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nimbus.model.errors import HostFault

MAX_LINE_BYTES = 1 << 20  # the longest that we ask for, the list of CPUs, takes 300 bytes for each


@dataclass(frozen=True)
class Greeting:
    """What a monitor says first: QEMU's own version."""

    version: tuple[int, int, int]


@dataclass(frozen=True)
class Answer:
    """To the command before it. `fault` is QEMU's own text where it refused."""

    value: Any = None
    fault: str = ""


@dataclass(frozen=True)
class Happening:
    """Something that happened by itself, for example STOP or SHUTDOWN."""

    name: str


Told = Greeting | Answer | Happening


def render_command(name: str, arguments: Mapping[str, object] | None = None) -> bytes:
    """One command, ready to be sent."""
    body: dict[str, object] = {"execute": name}
    if arguments:
        body["arguments"] = arguments
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


class QmpReader:
    """Bytes of a monitor in, what it told out. Raises HostFault for anything that is no QMP."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Told]:
        """What ends within `data`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise HostFault("QEMU's monitor sent a line without end")
        return [told for line in lines if line.strip() and (told := parse_line(line)) is not None]


def parse_line(line: bytes) -> Told | None:
    """One line; None for a kind that a later QEMU may have."""
    try:
        body = json.loads(line)
        if not isinstance(body, dict):
            raise TypeError("no object")
        if "QMP" in body:
            found = body["QMP"]["version"]["qemu"]
            return Greeting((int(found["major"]), int(found["minor"]), int(found["micro"])))
        if "error" in body:
            return Answer(fault=str(body["error"]["desc"]))
        if "return" in body:
            return Answer(body["return"])
        return Happening(str(body["event"])) if "event" in body else None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise HostFault(f"QEMU's monitor said what is no QMP: {line[:80]!r}") from error


def parse_status(value: Any) -> str:
    """The state of the machine in the answer to `query-status`: running, paused, inmigrate, postmigrate and more."""
    if not isinstance(value, dict) or not isinstance(value.get("status"), str):
        raise HostFault(f"QEMU's monitor told no status: {value!r:.80}")
    return str(value["status"])


def parse_migration(value: Any) -> str:
    """The state of the migration in the answer to `query-migrate`; `none` before one began."""
    if not isinstance(value, dict):
        raise HostFault(f"QEMU's monitor told no migration: {value!r:.80}")
    return str(value.get("status", "none"))


def parse_cpus(value: Any) -> tuple[int, ...]:
    """Thread ids (the host's, as QEMU's own pid namespace numbers them) in the answer to `query-cpus-fast`."""
    try:
        found = sorted((int(cpu["cpu-index"]), int(cpu["thread-id"])) for cpu in value)
    except (LookupError, TypeError, ValueError) as error:
        raise HostFault(f"QEMU's monitor told no CPUs: {value!r:.80}") from error
    return tuple(thread for _, thread in found)
