"""`nimbus logs --download`: a job's whole output into a file, or to stdout. Never leaves half a file under its name.

Called by logs.py; `logreading` fetches.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from nimbus.cli.logreading import LogReader
from nimbus.model.errors import Refused

STDOUT = "-"
_PART = ".part"
_TELL_S = 0.2  # between two states of the progress line
_MIB = 2**20


async def save_output(reader: LogReader, path: str, file: str, query: dict[str, str]) -> None:
    """Fetch all of it; the file has its name once it is whole."""
    if file == STDOUT:
        if sys.stdout.isatty():
            raise Refused("a download is not for a terminal, which a job's output could drive: name a file")
        await reader.download(path, query, sys.stdout.buffer.write, _Progress().tell)
        sys.stdout.flush()
        return
    target = Path(file)
    part = target.with_name(target.name + _PART)
    progress = _Progress()
    try:
        with part.open("wb") as out:
            size = await reader.download(path, query, out.write, progress.tell)
        os.replace(part, target)
    except OSError as error:
        raise Refused(f"cannot write {file}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
        progress.end()
    print(f"nimbus: {size} bytes in {file}", file=sys.stderr)


class _Progress:
    """One line on a terminal that is rewritten; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = False
        self._next = time.monotonic() + _TELL_S

    def tell(self, done: int, whole: int | None) -> None:
        if time.monotonic() < self._next or not sys.stderr.isatty():
            return
        self._next, self._shown = time.monotonic() + _TELL_S, True
        of = f" of {whole / _MIB:.1f}" if whole else ""
        print(f"\r{done / _MIB:.1f}{of} MiB\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
