"""The verdict on a log soak can fail: a line that is lost, doubled, swapped, altered or foreign is found."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.acceptance.logsoaklines import STREAMS, Printed, StreamBytes
from tests.acceptance.logsoakverdict import JobCheck

PRINTED = Printed(seed=1, job_id=17, lines=80)
Rows = list[tuple[int, str, str]]


def right_rows() -> Rows:
    """Stdout and stderr mixed, and the end."""
    out = [("stdout", PRINTED.line("stdout", number)) for number in range(PRINTED.count("stdout"))]
    err = [("stderr", PRINTED.line("stderr", number)) for number in range(PRINTED.count("stderr"))]
    told = [*out[:30], *err[:6], *out[30:], *err[6:], ("end", "")]
    return [(seq, stream, message) for seq, (stream, message) in enumerate(told)]


def judge(rows: Rows) -> str:
    check = JobCheck(PRINTED, "pages")
    for seq, stream, message in rows:
        check.see(seq, stream, message)
    return " | ".join(check.close())


def numbered(rows: Rows) -> Rows:
    return [(seq, stream, message) for seq, (_, stream, message) in enumerate(rows)]


def test_what_was_printed_is_right() -> None:
    assert judge(right_rows()) == ""


def test_a_line_that_was_told_in_two_rows_is_right_and_counted() -> None:
    rows = right_rows()
    _, stream, message = rows[5]
    cut = numbered([*rows[:5], (0, stream, message[:9]), (0, stream, message[9:]), *rows[6:]])
    check = JobCheck(PRINTED, "pages")
    for row in cut:
        check.see(*row)
    assert check.close() == []
    assert (check.cuts, check.lines) == (1, PRINTED.lines)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda rows: rows[:5] + rows[6:], "row 6 follows row 4: rows between are lost"),
        (lambda rows: numbered(rows[:5] + rows[6:]), "stdout has line 6 where line 5 is due: lines between are lost"),
        (lambda rows: rows[:6] + rows[5:], "row 5 came again"),
        (lambda rows: numbered(rows[:6] + rows[5:]), "stdout has line 5 again where line 6 is due"),
        (lambda rows: [*rows[:5], rows[6], rows[5], *rows[7:]], "row 5 came again"),
        (lambda rows: numbered([*rows[:5], rows[6], rows[5], *rows[7:]]), "stdout has line 5 again"),
        (lambda rows: [*rows[:5], (5, "stdout", rows[5][2][:-1] + "!"), *rows[6:]], "line 5 of stdout is not what was"),
        (lambda rows: [*rows[:5], (5, "stdout", ""), *rows[6:]], "stdout has '' where line 5 is due"),
        (lambda rows: [*rows[:5], (5, "stderr", rows[5][2]), *rows[6:]], "stderr has a line of job 17, stdout"),
        (
            lambda rows: [*rows[:5], (5, "stdout", Printed(1, 18, 80).line("stdout", 5)), *rows[6:]],
            "stdout has a line of job 18",
        ),
        (lambda rows: [*rows[:5], (5, "agent", "nimbus: 3 lines dropped"), *rows[6:]], "row 5 is of agent"),
        (lambda rows: rows[:-1], "the end is missing"),
        (lambda rows: numbered([*rows[:-2], rows[-1]]), "stderr ends behind line 8 of 10"),
        (lambda rows: [*rows, (len(rows), "stdout", "more")], "stands behind the end"),
        (lambda _: [], "the end is missing"),
    ],
)
def test_what_may_not_be_is_told(harm: Callable[[Rows], Rows], told: str) -> None:
    assert told in judge(harm(right_rows()))


def test_a_step_that_is_not_the_number_of_groups_so_far_is_told() -> None:
    check = JobCheck(PRINTED, "table")
    for seq, stream, message in right_rows():
        check.see(seq, stream, message, step=2 if seq == 40 else 1)
    assert check.close() == ["table, job 17: row 40 is of step 2, and it stands in step 1"]


def test_of_many_faults_some_are_told_and_the_others_counted() -> None:
    told = judge([(seq, "agent", "") for seq, _, _ in right_rows()])
    assert told.endswith("more")


@pytest.mark.parametrize("stream", STREAMS)
def test_a_guest_that_goes_on_at_any_offset_sends_the_same_bytes(stream: str) -> None:
    whole = "".join(f"{PRINTED.line(stream, number)}\n" for number in range(PRINTED.count(stream))).encode()
    rng = random.Random(3)
    for offset in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        source, sent = StreamBytes(PRINTED, stream, offset), b""
        while frame := source.frame(PRINTED.count(stream), rng):
            sent += frame
            assert whole[offset + len(sent) : offset + len(sent) + 1] != b"\n"
        assert sent == whole[offset:]
        assert source.offset == len(whole)
