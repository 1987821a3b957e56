"""What is kept of VMs that ended badly: the end of the serial console, and the facts of the end beside it.

A few small files below the state root, the oldest removed first; nothing here decides or deletes anything else.
Synchronous, called in threads: written by the agent on a bad end, read by `nimbus vms logs`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimbus.model.errors import HostFault, NotFound
from nimbus.model.ids import VmId

TAIL_BYTES_MAX = 64 * 1024
FACTS_BYTES_MAX = 64 * 1024
KEPT_MAX = 32
_CONSOLE, _FACTS = ".console", ".json"


@dataclass(frozen=True)
class Postmortem:
    """The last of one VM. A guest wrote the console: nothing of it may be believed, or reach a terminal as it is."""

    vm: VmId
    console: bytes
    facts: Mapping[str, Any]


def keep_console(folder: Path, vm: VmId, console: bytes, facts: Mapping[str, object]) -> None:
    """Keep the end of `console` and `facts` (small, JSON, no secrets) for the newest KEPT_MAX VMs.

    HostFault where the disk does not take them.
    """
    told = json.dumps({"version": 1, "vm": str(vm), **facts}).encode()
    if len(told) > FACTS_BYTES_MAX:
        told = json.dumps({"version": 1, "vm": str(vm)}).encode()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(folder / f"{vm}{_CONSOLE}", console[-TAIL_BYTES_MAX:])
        _replace(folder / f"{vm}{_FACTS}", told)
        _remove_oldest(folder)
    except OSError as error:
        raise HostFault(f"the end of VM {vm} cannot be kept ({error.strerror})") from error


def read_postmortem(folder: Path, vm: VmId) -> Postmortem:
    """What was kept of a VM. NotFound where nothing was, or not any more."""
    try:
        console = (folder / f"{vm}{_CONSOLE}").read_bytes()
    except FileNotFoundError:
        raise NotFound(f"nothing is kept of VM {vm}: it ended well, or long ago") from None
    try:
        facts = json.loads((folder / f"{vm}{_FACTS}").read_bytes())
    except FileNotFoundError:  # its agent was killed between the two
        facts = {}
    return Postmortem(vm, console, facts)


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    fresh.replace(path)


def _remove_oldest(folder: Path) -> None:
    """By the console's age: it is written first, so a crash between the two leaves nothing that is never removed."""
    dated = sorted((_age_mark(path), path) for path in folder.glob(f"*{_CONSOLE}"))
    for _, path in dated[:-KEPT_MAX]:
        path.unlink(missing_ok=True)
        path.with_suffix(_FACTS).unlink(missing_ok=True)


def _age_mark(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # another thread removes the same ones
        return 0
