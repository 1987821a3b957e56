"""The pipe that ties a machine without a lease to this process: its keeper ends it when the write end is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def open_leash() -> Iterator[int]:
    """The read end, which keepers inherit; the write end is this process alone's. Both are closed with the block."""
    read_fd, write_fd = os.pipe()
    try:
        yield read_fd
    finally:
        os.close(read_fd)
        os.close(write_fd)
