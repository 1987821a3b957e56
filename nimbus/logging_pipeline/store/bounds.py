"""How much of the store one read may use, and what its caller is told who would use more. Values only.

The bounds stand in the statement itself, so that a real server and the embedded engine hold them alike. Called by
`table`, which knows the codes of failed calls, and filled in from the settings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nimbus.logging_pipeline.settings import Settings
from nimbus.model.errors import NimbusError, Refused, Unavailable

MIB = 2**20
_NARROW = "narrow it by since and until, by repo or by job"

# ClickHouse's error codes (src/Common/ErrorCodes.cpp)
_ROWS = frozenset({158, 307, 396})  # TOO_MANY_ROWS, TOO_MANY_BYTES, TOO_MANY_ROWS_OR_BYTES
_TIME = frozenset({159, 160})  # TIMEOUT_EXCEEDED, TOO_SLOW
_MEMORY = 241  # MEMORY_LIMIT_EXCEEDED


@dataclass(frozen=True)
class ReadBounds:
    """Of one statement. 0 rows: any number."""

    seconds: float
    rows: int
    memory_mib: int

    @property
    def of_pages(self) -> ReadBounds:
        """A page ends with its limit, but the engine would count all rows of the job against it before it reads."""
        return replace(self, rows=0)

    @property
    def is_heavy(self) -> bool:
        """Whether the statement may read much."""
        return self.rows > 0

    @property
    def settings(self) -> tuple[str, ...]:
        """The store's settings that hold a statement to these bounds."""
        return (
            f"max_execution_time = {self.seconds:.3f}",
            f"max_rows_to_read = {self.rows:d}",
            f"max_memory_usage = {self.memory_mib * MIB:d}",
        )

    def judge(self, code: object) -> NimbusError | None:
        """What the caller is told where a statement ran into its own bounds; None for every other failure."""
        if code in _ROWS:
            return Refused(f"this would read more than {self.rows} rows of output: {_NARROW}")
        if code == _MEMORY:
            return Refused(f"this would need more than {self.memory_mib} MiB of memory: {_NARROW}")
        if code in _TIME:
            return Unavailable(f"this took longer than {self.seconds:g} s: {_NARROW}, or retry when less is going on")
        return None


def plan_bounds(settings: Settings) -> ReadBounds:
    """As they are set. The store gives up before our client of it does, which could not tell why."""
    seconds = min(settings.logging_query_seconds, 0.8 * settings.clickhouse_timeout)
    return ReadBounds(seconds, settings.logging_query_rows, settings.logging_query_memory_mib)
