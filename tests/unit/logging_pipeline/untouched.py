"""Stages for tests of the writer alone: rows are stored as they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nimbus.logging_pipeline.ingest.stages import Stages
from nimbus.logging_pipeline.rows import JobLink, Row, Source


class Untouched:
    """Masks, marker, links and publisher in one, who do nothing."""

    async def prepare(self, firsts: Mapping[Source, int]) -> None:
        return

    def mark(self, source: Source, rows: Sequence[Row]) -> None:
        return

    def hide(self, source: Source, rows: list[Row]) -> list[Row]:
        return rows

    def link_of(self, source: Source) -> JobLink:
        return JobLink()

    def publish(self, source: Source, rows: Sequence[Row]) -> None:
        return


def plan_untouched() -> Stages:
    nothing = Untouched()
    return Stages(publisher=nothing, masks=nothing, marker=nothing, links=nothing)
