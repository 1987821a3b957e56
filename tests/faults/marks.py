"""The witness of a storm: who ran when, told by the jobs themselves and by nothing of the product.

One line for each mark: `unix_ns job run word`, the word being begin, beat or end; a run is one process. Guests
reach no file of the host, so they knock at a port and are written down when they are heard. Called by storm.py.
"""

from __future__ import annotations

import itertools
import os
import socketserver
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.witness import Beat


@dataclass(frozen=True)
class Run:
    """One process of one job."""

    job: int
    run: int  # a number of its own
    beats_ns: tuple[int, ...]
    ended: bool  # it came to its own end

    @property
    def first_ns(self) -> int:
        return self.beats_ns[0]

    @property
    def last_ns(self) -> int:
        return self.beats_ns[-1]


def read_runs(file: Path) -> dict[int, list[Run]]:
    """Each job's runs, in their order."""
    beats: dict[tuple[int, int], list[int]] = defaultdict(list)
    ended = set()
    text = file.read_text() if file.exists() else ""
    for line in text.rpartition("\n")[0].splitlines():
        at_ns, job, run, word = line.split()
        beats[int(job), int(run)].append(int(at_ns))
        if word == "end":
            ended.add((int(job), int(run)))
    found: dict[int, list[Run]] = defaultdict(list)
    for key, times in sorted(beats.items(), key=lambda each: min(each[1])):
        found[key[0]].append(Run(*key, tuple(sorted(times)), key in ended))
    return dict(found)


def find_fence(run: Run, granted_ms: Mapping[int, int]) -> int:
    """Pure: under which fence a run began: the newest that was granted by then (fences and when they were)."""
    return max((fence for fence, at_ms in granted_ms.items() if at_ms * 1_000_000 <= run.first_ns), default=0)


def to_beats(runs: Sequence[Run], granted_ms: Mapping[int, int]) -> list[Beat]:
    """Pure: as the witness of double runs reads them."""
    return [Beat(at, run.job, find_fence(run, granted_ms), run.run) for run in runs for at in run.beats_ns]


@contextmanager
def listening_witness(file: Path) -> Iterator[int]:
    """A port of this host that guests beat at; what they say is in the file a moment later."""
    numbers = itertools.count(1)
    out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    class Ear(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            run, job = next(numbers), 0
            for line in self.rfile:
                word = line.decode().strip()
                if not job:
                    job, word = int(word), "begin"
                os.write(out, f"{time.time_ns()} {job} {run} {word}\n".encode())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True  # a VM that was killed says no farewell
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """A VM that was killed while it spoke."""

    with Server(("127.0.0.1", 0), Ear) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
            os.close(out)
