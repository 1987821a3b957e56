"""Network namespaces by name, as files under /run/netns that `ip netns` understands too.

Makes and removes the namespace and nothing inside it. Never moves the calling thread into one: the C
library does that in a thread of its own. Called by host_agent/network.py and by host/inventory.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nimbus.host import native
from nimbus.model.errors import HostFault

NETNS_DIR = Path("/run/netns")


def netns_path(name: str) -> Path:
    """Where the namespace `name` is found; a name with a slash would leave the folder and is refused."""
    if not name or "/" in name or name in {".", ".."}:
        raise HostFault(f"{name!r} cannot name a network namespace")
    return NETNS_DIR / name


def ensure_netns(name: str) -> Path:
    """A new, empty namespace. A leftover of that name is dropped: the caller owns the name."""
    path = netns_path(name)
    try:
        NETNS_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.exists():
            native.remove_netns(str(path))
        native.create_netns(str(path))
    except OSError as error:
        raise HostFault(
            f"network namespace {name} could not be made ({error.strerror}): Nimbus needs root or CAP_SYS_ADMIN"
        ) from error
    return path


def remove_netns(name: str) -> None:
    """Drop the name. The kernel frees the namespace once its last process is gone; absent is success."""
    path = netns_path(name)
    try:
        native.remove_netns(str(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostFault(f"network namespace {name} could not be removed ({error.strerror})") from error


def list_netns(prefix: str) -> tuple[str, ...]:
    """Names that begin with `prefix`."""
    try:
        return tuple(sorted(name for name in os.listdir(NETNS_DIR) if name.startswith(prefix)))
    except FileNotFoundError:
        return ()


@contextmanager
def open_netns(name: str) -> Iterator[int]:
    """A file descriptor of the namespace for as long as the block lasts."""
    try:
        fd = os.open(netns_path(name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostFault(f"network namespace {name} could not be opened ({error.strerror})") from error
    try:
        yield fd
    finally:
        os.close(fd)
