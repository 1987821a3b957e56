"""What happens to fresh rows between their selection and the table: hidden, marked, told, in this order.

Only what `writer` needs of its neighbours is said here; app.py puts the real ones in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nimbus.logging_pipeline.rows import JobLink, Row, Source


class Masks(Protocol):
    """Hides what must not be seen."""

    def hide(self, source: Source, rows: list[Row]) -> list[Row]:
        """The same rows, in the same order, without secrets."""


class Marker(Protocol):
    """Gives rows their step and level."""

    async def prepare(self, firsts: Mapping[Source, int]) -> None:
        """Learn what must be known before rows that begin with these numbers are marked."""

    def mark(self, source: Source, rows: Sequence[Row]) -> None:
        """In place."""


class Links(Protocol):
    """Which job a machine runs."""

    def link_of(self, source: Source) -> JobLink:
        """As far as it is known; asks in the background."""


class Publisher(Protocol):
    """Whoever follows."""

    def publish(self, source: Source, rows: Sequence[Row]) -> None:
        """Tell of rows that are about to be stored. Never waits and never fails."""


@dataclass(frozen=True)
class Stages:
    """The neighbours of the writer."""

    publisher: Publisher
    masks: Masks
    marker: Marker
    links: Links
