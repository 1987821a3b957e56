"""The step and the level of rows: what a job says by the groups and annotations in its output."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nimbus.logging_pipeline.ingest.steps import MAX_STEP, Steps
from nimbus.logging_pipeline.rows import Row, Source

SOURCE = Source(1, 7, 1)
OUTPUT = [
    "before", "::group::one", "::error file=a.c::bad", "::endgroup::", "between", "##[group]two", "##[warning]hm",
    "::notice::n",
]  # fmt: skip
MARKED = [
    (0, "info"), (1, "info"), (1, "error"), (1, "info"), (1, "info"), (2, "info"), (2, "warning"), (2, "notice"),
]  # fmt: skip


class Stored:
    """A table of marked rows, and what was asked of it."""

    def __init__(self) -> None:
        self.rows: dict[Source, dict[int, int]] = {}
        self.asked: list[dict[Source, int]] = []

    async def ask(self, firsts: Mapping[Source, int]) -> dict[Source, int]:
        await trio.lowlevel.checkpoint()
        self.asked.append(dict(firsts))
        return {
            source: max((step for seq, step in self.rows.get(source, {}).items() if seq < first), default=0)
            for source, first in firsts.items()
        }

    def keep(self, rows: list[Row], source: Source = SOURCE) -> None:
        self.rows.setdefault(source, {}).update({row.seq: row.step for row in rows})


def rows_of(messages: list[str], first_seq: int = 0, stream: str = "stdout", level: str = "info") -> list[Row]:
    return [Row(first_seq + index, 1, stream, level, message) for index, message in enumerate(messages)]


async def mark(steps: Steps, rows: list[Row], source: Source = SOURCE) -> list[tuple[int, str]]:
    if rows:
        await steps.prepare({source: rows[0].seq})
    steps.mark(source, rows)
    return [(row.step, row.level) for row in rows]


async def test_rows_get_the_number_of_groups_begun_and_the_level_of_their_command() -> None:
    assert await mark(Steps(Stored().ask), rows_of(OUTPUT)) == MARKED


@pytest.mark.parametrize(("stream", "level"), [("agent", "warning"), ("console", "info"), ("end", "info")])
async def test_only_what_the_job_itself_printed_is_read_for_commands(stream: str, level: str) -> None:
    rows = rows_of(["::group::x", "::error::y"], stream=stream, level=level)
    assert await mark(Steps(Stored().ask), rows) == [(0, level), (0, level)]


async def test_standard_error_is_no_error_by_itself_but_may_hold_commands() -> None:
    told = await mark(Steps(Stored().ask), rows_of(["+ make", "::error::failed"], stream="stderr"))
    assert told == [(0, "info"), (0, "error")]


async def test_machines_are_told_apart_and_so_are_fences() -> None:
    steps = Steps(Stored().ask)
    await mark(steps, rows_of(["::group::x"]))
    assert await mark(steps, rows_of(["line"]), Source(1, 7, 2)) == [(0, "info")]
    assert await mark(steps, rows_of(["line"]), Source(2, 7, 1)) == [(0, "info")]
    assert await mark(steps, rows_of(["line"], 1)) == [(1, "info")]


@given(st.lists(st.integers(0, len(OUTPUT)), max_size=19), st.lists(st.booleans(), min_size=20, max_size=20))
def test_however_rows_are_cut_into_batches_and_whatever_failed_they_are_marked_alike(
    cuts: list[int], failing: list[bool]
) -> None:
    async def run() -> list[tuple[int, str]]:
        stored, begin = Stored(), 0
        steps = Steps(stored.ask)
        told: list[tuple[int, str]] = []
        for end, fails in zip([*sorted(cuts), len(OUTPUT)], failing, strict=False):
            if fails:
                await mark(steps, rows_of(OUTPUT[begin:end], begin))  # never stored: these rows come again
            rows = rows_of(OUTPUT[begin:end], begin)
            told += await mark(steps, rows)
            stored.keep(rows)
            begin = end
        return told

    assert trio.run(run) == MARKED


async def test_a_batch_that_comes_again_after_a_failed_insert_counts_its_groups_once() -> None:
    stored = Stored()
    steps = Steps(stored.ask)
    first = rows_of(["::group::one", "a"])
    await mark(steps, first)
    stored.keep(first)
    await mark(steps, rows_of(["::group::two", "b"], 2))
    assert await mark(steps, rows_of(["::group::two", "b"], 2)) == [(2, "info"), (2, "info")]
    assert await mark(steps, rows_of(["c"], 4)) == [(2, "info")]
    assert stored.asked == [{SOURCE: 2}]


async def test_only_machines_that_do_not_go_on_where_they_stood_are_asked_for_all_at_once() -> None:
    stored = Stored()
    steps = Steps(stored.ask, kept=2)
    others = [Source(1, machine, 1) for machine in (8, 9)]
    for source in (SOURCE, *others):
        rows = rows_of(["::group::one"])
        await mark(steps, rows, source)
        stored.keep(rows, source)
    await steps.prepare({SOURCE: 1, others[0]: 1, others[1]: 1, Source(2, 1, 1): 0})
    assert stored.asked == [{SOURCE: 1}]
    assert await mark(steps, rows_of(["x"], 1)) == [(1, "info")]


async def test_stopped_commands_give_neither_level_nor_step_until_their_token() -> None:
    rows = rows_of(["::stop-commands::tok", "::group::x", "::error::y", "::tok::", "::group::z"])
    assert await mark(Steps(Stored().ask), rows) == [(0, "info"), (0, "info"), (0, "info"), (0, "info"), (1, "info")]


async def test_more_groups_than_the_column_holds_stay_in_the_last_step() -> None:
    stored = Stored()
    stored.rows[SOURCE] = {4: MAX_STEP - 1}
    told = await mark(Steps(stored.ask), rows_of(["::group::a", "::group::b"], 5))
    assert told == [(MAX_STEP, "info"), (MAX_STEP, "info")]
