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

import structlog

from nimbus.host.disk import write_atomically
from nimbus.host_agent.sight.presence import LOCK_NAME
from nimbus.model.errors import Conflict

log = structlog.get_logger()

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
        _say_who(fd)
        yield count_start(state / STARTS_NAME)
    finally:
        os.close(fd)


def _say_who(fd: int) -> None:
    """Whom `nimbus agent drain` asks. Written over what stood there, which a full disk takes."""
    text = f"{os.getpid()}\n".encode()
    try:
        os.pwrite(fd, text, 0)
        os.ftruncate(fd, len(text))
    except OSError as error:
        log.warning("agent.pid_not_told", error=error.strerror)


def count_start(file: Path) -> int:
    """A number above that of every earlier start, kept in `file`. Not below the clock: the file may have been lost, and
    a disk that takes no file must not keep an agent from the machines that it has to adopt.
    """
    try:
        before = int(file.read_text())
    except (OSError, ValueError):
        before = 0
    number = max(before + 1, int(time.time()))
    try:
        write_atomically(file, f"{number}\n".encode(), fsync=True)
    except OSError as error:
        log.warning("agent.start_not_counted", error=error.strerror)
    return number
