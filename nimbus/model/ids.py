"""Identifiers and the kernel object names made from them.

Every name is a pure function of ids, so a reaper that holds only a VM id finds all that the VM owned.
Linux allows 15 bytes for an interface name (IFNAMSIZ 16 with the terminator), checked here.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from nimbus.model.errors import Refused

IFNAME_MAX_BYTES = 15
_VM_ID = re.compile(r"[0-9a-f]{8}")
_OBJECT_NAME = re.compile(r"nb([0-9a-f]{3})-([0-9a-f]{8})")


@dataclass(frozen=True, order=True)
class VmId:
    """Eight hex digits naming one microVM for its whole life."""

    text: str

    def __post_init__(self) -> None:
        if not _VM_ID.fullmatch(self.text):
            raise Refused(f"{self.text!r} is not a VM id: eight lower-case hex digits are needed")

    def __str__(self) -> str:
        return self.text


def is_vm_id(text: str) -> bool:
    """Whether that can be a VM's id: a folder of ours may hold files of others."""
    return _VM_ID.fullmatch(text) is not None


def new_vm_id() -> VmId:
    return VmId(secrets.token_hex(4))


def state_root_id(state_root: str) -> str:
    """Three hex digits that tell this state root's kernel objects from those of another agent on the host."""
    return hashlib.sha256(state_root.rstrip("/").encode()).hexdigest()[:3]


def object_name(root_id: str, vm: VmId) -> str:
    """The one name of a VM's netns, veth, nft table and cgroup: `nb<3 hex>-<8 hex>`, 14 bytes."""
    return check_ifname(f"nb{root_id}-{vm}")


def parse_object_name(name: str) -> tuple[str, VmId] | None:
    """(state root id, VM id) of a kernel object name of ours, or None for somebody else's."""
    match = _OBJECT_NAME.fullmatch(name)
    return (match[1], VmId(match[2])) if match else None


def check_ifname(name: str) -> str:
    """The name itself, or Refused where the kernel would cut or reject it."""
    if not name or len(name.encode()) > IFNAME_MAX_BYTES or "/" in name or any(c.isspace() for c in name):
        raise Refused(f"{name!r} is no interface name: 1 to {IFNAME_MAX_BYTES} bytes, no slash, no space")
    return name
