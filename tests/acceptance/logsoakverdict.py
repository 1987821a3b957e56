"""Whether what a reader saw of a job is what the job printed: each line once, in order, and nothing else.

The same check for all readers: pages, the table itself, followers. Pure, and its memory does not grow with the output.
Called by logsoak.py; test_log_soak_verdict.py shows that it finds what may not be.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.acceptance.logsoaklines import STREAMS, Printed, read_place

TOLD_MAX = 5  # complaints that are kept word for word; the others are counted
_GROUP = "::group::"


@dataclass
class JobCheck:
    """One reader's view of one job, row by row."""

    printed: Printed
    reader: str
    rows: int = 0
    lines: int = 0
    cuts: int = 0  # lines that were told in two rows, since their second half came late
    faults: int = 0
    told: list[str] = field(default_factory=list)
    _next_seq: int = 0
    _step: int = 0
    _ended: bool = False
    _due: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    _read: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))  # of the line that is due

    def see(self, seq: int, stream: str, message: str, step: int | None = None) -> None:
        """The reader's next row; `step` where it has one."""
        self.rows += 1
        if self._ended:
            self._complain(f"row {seq} stands behind the end")
        if seq != self._next_seq:
            what = "came again" if seq < self._next_seq else f"follows row {self._next_seq - 1}: rows between are lost"
            self._complain(f"row {seq} {what}")
        self._next_seq = seq + 1
        self._step += message.startswith(_GROUP)
        if step not in (None, self._step):
            self._complain(f"row {seq} is of step {step}, and it stands in step {self._step}")
        if stream == "end":
            self._ended = True
        elif stream in self._due:
            self._see_text(stream, message)
        else:
            self._complain(f"row {seq} is of {stream}: {message!r}")

    def close(self) -> list[str]:
        """All complaints, once nothing more comes."""
        for stream, due in self._due.items():
            wanted = self.printed.count(stream)
            if due != wanted or self._read[stream]:
                self._complain(f"{stream} ends behind line {due - 1} of {wanted}")
        if not self._ended:
            self._complain("the end is missing")
        more = self.faults - len(self.told)
        return self.told + ([f"{self._name}: {more} more"] if more else [])

    @property
    def _name(self) -> str:
        return f"{self.reader}, job {self.printed.job_id}"

    def _see_text(self, stream: str, message: str) -> None:
        number = self._due[stream]
        left = self.printed.line(stream, number)[self._read[stream] :]
        if message == left and number < self.printed.count(stream):
            self._due[stream], self._read[stream] = number + 1, 0
            self.lines += 1
        elif message and left.startswith(message):
            self._read[stream] += len(message)
            self.cuts += 1
        else:
            self._misread(stream, message)

    def _misread(self, stream: str, message: str) -> None:
        """Say what is wrong with a line, and go on behind it."""
        due, place = self._due[stream], read_place(message)
        if place is None:
            self._complain(f"{stream} has {message[:60]!r} where line {due} is due")
        elif place[:2] != (self.printed.job_id, stream):
            self._complain(f"{stream} has a line of job {place[0]}, {place[1]}: {message[:60]!r}")
        elif place[2] < due:
            self._complain(f"{stream} has line {place[2]} again where line {due} is due")
        elif place[2] > due:
            self._complain(f"{stream} has line {place[2]} where line {due} is due: lines between are lost")
        else:
            self._complain(f"line {due} of {stream} is not what was printed: {message[:60]!r}")
        if place is not None and place[:2] == (self.printed.job_id, stream) and place[2] >= due:
            self._due[stream], self._read[stream] = place[2] + 1, 0

    def _complain(self, what: str) -> None:
        self.faults += 1
        if len(self.told) < TOLD_MAX:
            self.told.append(f"{self._name}: {what}")
