"""Unix sockets below a VM's folder, which belongs to the VM's uid: opened so that no name there leads anywhere else."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import trio

from nimbus.model.errors import HostFault


async def connect_unix(path: Path) -> trio.SocketStream:
    """A stream to the unix socket at `path`, however long that path is (sun_path holds 107 bytes).

    The socket's own inode is opened, never a link's target, and connected by its descriptor. Raises OSError while
    there is none.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise HostFault(f"{path.name} of the VM is no socket: a VMM tried to lead the agent elsewhere")
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(f"/proc/self/fd/{found}")
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)
    finally:
        os.close(found)
