"""What the jobs of a log soak print: every line a pure function of seed, job, stream and number.

So a guest that must send its bytes again has them, and a reader knows what is due. Called by the agent-like processes
(logsoakagent.py) and the verdict (logsoakverdict.py).
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

STREAMS = ("stdout", "stderr")
STDERR_EVERY = 8  # lines of the job; the others go to stdout
GROUP_EVERY = 1000  # lines of stdout: the job's output has steps
_LONG_ONE_IN, _LONG_TIMES = 500, 40
_SHORT = {"stdout": "out", "stderr": "err"}


@dataclass(frozen=True)
class Printed:
    """One job's output as it is planned."""

    seed: int
    job_id: int
    lines: int

    def count(self, stream: str, share: float = 1.0) -> int:
        """Lines of the stream that are printed once this share of the job's output is."""
        on_stderr = self.lines // STDERR_EVERY
        return int((on_stderr if stream == "stderr" else self.lines - on_stderr) * share)

    def line(self, stream: str, number: int) -> str:
        """One line, without its newline."""
        place = f"{self.job_id} {_SHORT[stream]} {number:07d}"
        if stream == "stdout" and number % GROUP_EVERY == 0:
            return f"::group::{place}"
        check = zlib.crc32(f"{self.seed} {place}".encode())
        words = 1 + check % 12
        return f"{place} " + f"{check:08x} " * (words * _LONG_TIMES if check % _LONG_ONE_IN == 0 else words) + "."


def read_place(text: str) -> tuple[int, str, int] | None:
    """Job, stream and number that a line claims; None for one that claims none."""
    words = text.removeprefix("::group::").split(" ", 3)
    streams = {short: stream for stream, short in _SHORT.items()}
    if len(words) < 3 or words[1] not in streams or not (words[0].isdigit() and words[2].isdigit()):
        return None
    return int(words[0]), streams[words[1]], int(words[2])


class StreamBytes:
    """The bytes of one stream from an offset on, as a guest sends them: in frames that do not mind where lines end.

    A frame never ends right before a newline, so that a line that was told as it stood is not told as two.
    """

    def __init__(self, printed: Printed, stream: str, offset: int) -> None:
        self._printed, self.stream = printed, stream
        self.number = 0  # of the next line that is not rendered yet
        self.offset = 0  # of the next byte to send
        self._rendered = b""
        while self.offset < offset:
            line = self._render()
            self._rendered = line[max(0, offset - self.offset) :]
            self.offset = min(offset, self.offset + len(line))

    def frame(self, lines: int, rng: random.Random) -> bytes:
        """The next bytes before line `lines`; none when all of them are sent."""
        wanted = rng.choice((200, 4_000, 30_000, 60_000)) + rng.randrange(200)
        parts, size = [self._rendered], len(self._rendered)
        while self.number < lines and size <= wanted:
            line = self._render()
            parts.append(line)
            size += len(line)
        data = b"".join(parts)
        at = min(wanted, len(data))
        if data[at : at + 1] == b"\n":
            at += 1
        self._rendered = data[at:]
        self.offset += at
        return data[:at]

    def _render(self) -> bytes:
        self.number += 1
        return self._printed.line(self.stream, self.number - 1).encode() + b"\n"
