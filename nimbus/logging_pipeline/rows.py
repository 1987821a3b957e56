"""The nouns of job output: whose it is, one line of it, a place in it. Values only; used by all of this room."""

from __future__ import annotations

from dataclasses import dataclass

STREAMS = frozenset({"stdout", "stderr", "console", "agent", "end"})
END_STREAM = "end"  # the machine says that nothing follows
MAX_SEQ = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Source:
    """Whose output it is: one machine under one fence."""

    org_id: int
    machine_id: int
    fence: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of output."""

    seq: int
    ts_ms: int
    stream: str
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row on its way into the table."""

    source: Source
    agent_id: str
    row: Row


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


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row as readers get it."""

    machine_id: int
    fence: int
    row: Row

    @property
    def place(self) -> Place:
        return Place(self.machine_id, self.fence, self.row.seq)
