"""The nouns of job output: whose it is, one line of it, a place in it. Values only; used by all of this room."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

STREAMS = frozenset({"stdout", "stderr", "console", "agent", "end"})
END_STREAM = "end"  # the machine says that nothing follows
MAX_SEQ = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Source:
    """Whose output it is: one machine under one fence."""

    org_id: int
    machine_id: int
    fence: int


class Row(msgspec.Struct, gc=False):
    """One line of output. Ingest (mask, level, step) may write in place until it is told and stored; nobody else does.

    A compiled struct that the garbage collector passes over, since rows are made by the hundred thousand a second.
    """

    seq: int
    ts_ms: int
    stream: str
    level: str
    message: str
    step: int = 0  # how many top-level groups the machine's output had begun


@dataclass(frozen=True, slots=True)
class JobLink:
    """Which job a machine ran, as the control plane told it; zeros while that is not known."""

    repo_id: int = 0
    job_id: int = 0
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one source on their way into the table."""

    source: Source
    agent_id: str
    rows: list[Row]
    link: JobLink = JobLink()


@dataclass(frozen=True, slots=True)
class Place:
    """A reader's place in the output of one machine under one fence: everything up to `seq` was read."""

    machine_id: int
    fence: int
    seq: int


@dataclass(frozen=True, slots=True)
class ReadScope:
    """What one reader may see: some machines of one org, under one fence or all."""

    org_id: int
    machines: tuple[int, ...]
    fence: int | None = None


class ReadRow(msgspec.Struct, frozen=True, gc=False):
    """A row as readers get it. Compiled too: a page makes a thousand of them while others wait."""

    machine_id: int
    fence: int
    row: Row

    @property
    def place(self) -> Place:
        return Place(self.machine_id, self.fence, self.row.seq)
