"""One agent for each state root, and the number of its start.

Called by main.py; presence.py looks at the same file from outside.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nimbus.host.disk import write_atomically
from nimbus.host_agent.presence import LOCK_NAME
from nimbus.model.errors import Conflict, HostFault

STARTS_NAME = "agent.starts"


@contextmanager
def single_instance(state: Path) -> Iterator[int]:
    """The state root's own lock, with the number of this start. Raises Conflict while another agent has it."""
    state.mkdir(parents=True, exist_ok=True)
    fd = os.open(state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(f"an agent runs on {state}: stop it, or set another NIMBUS_STATE_DIR") from None
    else:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)  # whom `nimbus agent drain` asks
        yield count_start(state / STARTS_NAME)
    finally:
        os.close(fd)


def count_start(file: Path) -> int:
    """A number above that of every earlier start, kept in `file`. Not below the clock: the file may have been lost."""
    try:
        before = int(file.read_text())
    except (FileNotFoundError, ValueError):
        before = 0
    number = max(before + 1, int(time.time()))
    try:
        write_atomically(file, f"{number}\n".encode(), fsync=True)
    except OSError as error:
        raise HostFault(f"cannot write {file}: {error.strerror}: free space on the state folder") from error
    return number
