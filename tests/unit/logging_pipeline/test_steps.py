"""The step and the level of rows: what a job says by the groups and annotations in its output."""

from __future__ import annotations

import pytest
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


def rows_of(messages: list[str], first_seq: int = 0, stream: str = "stdout", level: str = "info") -> list[Row]:
    return [Row(first_seq + index, 1, stream, level, message) for index, message in enumerate(messages)]


def mark(steps: Steps, rows: list[Row], source: Source = SOURCE) -> list[tuple[int, str]]:
    steps.mark(source, rows)
    return [(row.step, row.level) for row in rows]


def test_rows_get_the_number_of_groups_begun_and_the_level_of_their_command() -> None:
    assert mark(Steps(), rows_of(OUTPUT)) == MARKED


@pytest.mark.parametrize(("stream", "level"), [("agent", "warning"), ("console", "info"), ("end", "info")])
def test_only_what_the_job_itself_printed_is_read_for_commands(stream: str, level: str) -> None:
    assert mark(Steps(), rows_of(["::group::x", "::error::y"], stream=stream, level=level)) == [(0, level), (0, level)]


def test_standard_error_is_no_error_by_itself_but_may_hold_commands() -> None:
    told = mark(Steps(), rows_of(["+ make", "::error::failed"], stream="stderr"))
    assert told == [(0, "info"), (0, "error")]


def test_machines_are_told_apart_and_so_are_fences() -> None:
    steps = Steps()
    mark(steps, rows_of(["::group::x"]))
    assert mark(steps, rows_of(["line"]), Source(1, 7, 2)) == [(0, "info")]
    assert mark(steps, rows_of(["line"]), Source(2, 7, 1)) == [(0, "info")]
    assert mark(steps, rows_of(["line"], 1)) == [(1, "info")]


@given(st.lists(st.integers(0, len(OUTPUT))), st.lists(st.booleans(), min_size=20, max_size=20))
def test_however_rows_are_cut_into_batches_and_whatever_was_forgotten_they_are_marked_alike(
    cuts: list[int], forget: list[bool]
) -> None:
    steps, begin = Steps(), 0
    told: list[tuple[int, str]] = []
    for end, forgotten in zip([*sorted(cuts)[:19], len(OUTPUT)], forget, strict=False):
        if forgotten:
            steps.forget(SOURCE)
        if steps.needs(SOURCE, begin):
            steps.recall(SOURCE, max(step for step, _ in told))
        told += mark(steps, rows_of(OUTPUT[begin:end], begin))
        begin = end
    assert told == MARKED


def test_a_batch_that_comes_again_after_a_failed_insert_counts_its_groups_once() -> None:
    steps = Steps()
    mark(steps, rows_of(["::group::one", "a"]))
    mark(steps, rows_of(["::group::two", "b"], 2))
    assert steps.needs(SOURCE, 2)
    steps.recall(SOURCE, 1)
    assert mark(steps, rows_of(["::group::two", "b"], 2)) == [(2, "info"), (2, "info")]
    assert not steps.needs(SOURCE, 4)


def test_a_new_machine_needs_no_question_and_one_that_was_crowded_out_does() -> None:
    steps = Steps(kept=2)
    assert not steps.needs(SOURCE, 0)
    mark(steps, rows_of(["::group::one"]))
    for machine in (8, 9):
        mark(steps, rows_of(["x"]), Source(1, machine, 1))
    assert steps.needs(SOURCE, 1)
    assert not steps.needs(Source(1, 9, 1), 1)


def test_stopped_commands_give_neither_level_nor_step_until_their_token() -> None:
    rows = rows_of(["::stop-commands::tok", "::group::x", "::error::y", "::tok::", "::group::z"])
    assert mark(Steps(), rows) == [(0, "info"), (0, "info"), (0, "info"), (0, "info"), (1, "info")]


def test_more_groups_than_the_column_holds_stay_in_the_last_step() -> None:
    steps = Steps()
    steps.recall(SOURCE, MAX_STEP - 1)
    assert mark(steps, rows_of(["::group::a", "::group::b"], 5)) == [(MAX_STEP, "info"), (MAX_STEP, "info")]
