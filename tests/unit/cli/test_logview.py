"""How output looks: headings and annotations on a terminal, the job's own lines in a pipe."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nimbus.cli.logview import Look, View, render_hit
from nimbus.wire.joboutput import Annotation

PIPE = Look(pretty=False, colour=False)
PLAIN = Look(pretty=True, colour=False)
TERMINAL = Look(pretty=True, colour=True)
_ALLOWED = re.compile(r"(?:\x1b\[[0-9;]*m|[^\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069])*")


def row(message: str, stream: str = "stdout", machine: int = 7) -> dict[str, Any]:
    return {
        "machine_id": machine,
        "fence": 1,
        "seq": 0,
        "ts_ms": 1_764_000_000_123,
        "stream": stream,
        "message": message,
    }


def show(look: Look, *rows: dict[str, Any]) -> list[str]:
    view = View(look)
    return [line for each in rows for line in view.lines(each)]


BUILD = [
    row("before"), row("::group::Build"), row("cc a.c"),
    row("::error file=a.c,line=3,col=7,title=cc::no ;%0Asee above"),
    row("::endgroup::"), row("##[group]Test"), row("##[warning]slow"), row("::debug::x=1"), row("##[command]make test"),
]  # fmt: skip


def test_on_a_terminal_groups_are_headings_and_what_they_hold_is_indented() -> None:
    assert show(PLAIN, *BUILD) == [
        "before",
        "▸ Build",
        "  cc a.c",
        "  error a.c:3:7 cc: no ;",
        "    see above",
        "▸ Test",
        "  warning slow",
        "  debug x=1",
        "  make test",
    ]


def test_in_a_pipe_each_row_is_the_line_that_the_job_printed() -> None:
    assert show(PIPE, *BUILD) == [each["message"] for each in BUILD]


def test_errors_stand_out_and_colours_end_where_they_began() -> None:
    error = show(TERMINAL, row("::error file=a.c::bad"))
    assert error == ["\x1b[1;31merror\x1b[0m \x1b[1ma.c\x1b[0m bad"]


def test_groups_of_machines_that_print_at_once_are_told_apart() -> None:
    told = show(PLAIN, row("::group::a", machine=1), row("b", machine=2), row("c", machine=1))
    assert told == ["▸ a", "b", "  c"]


def test_stopped_commands_are_shown_as_lines() -> None:
    told = show(PLAIN, row("::stop-commands::tok"), row("::group::no"), row("::tok::"), row("::group::yes"))
    assert told == ["::stop-commands::tok", "::group::no", "::tok::", "▸ yes"]


def test_each_line_has_its_time_where_that_is_wanted() -> None:
    assert show(Look(pretty=False, colour=False, timestamps=True), row("x")) == ["2025-11-24T16:00:00.123Z x"]


def test_the_console_is_marked_and_the_end_is_not_shown() -> None:
    assert show(PIPE, row("[0.1] Linux", "console"), row("", "end")) == ["[console] [0.1] Linux"]


def test_a_group_without_a_name_and_an_annotation_without_a_place_are_shown() -> None:
    assert show(PLAIN, row("::group::"), row("::error line=3::x")) == ["▸ ", "  error x"]
    assert View(PLAIN).annotation(Annotation("notice", "hello", file="f", line=2)) == ["notice f:2 hello"]


def test_a_hit_stands_below_its_job_or_has_its_address_in_front() -> None:
    hit = row("disk \x1b]0;x\x07full") | {"job_id": 12, "seq": 34}
    assert render_hit(hit, View(PIPE)) == (None, "12:7#1:34:2025-11-24T16:00:00.123Z: disk full")
    heading, line = render_hit(hit | {"job_id": None}, View(PLAIN))
    assert (heading, line) == ("machine 7#1", "  2025-11-24T16:00:00.123Z      34 disk full")


_PARTS = [
    "::group::",
    "::error file=",
    ",title=",
    "::",
    "##[command]",
    "##[debug]",
    "%0A",
    "%0D",
    "%1B",
    "\x1b[31m",
    "\x1b]0;",
    "\r",
]


@given(st.lists(st.one_of(st.sampled_from(_PARTS), st.text(max_size=4))).map("".join), st.booleans(), st.booleans())
def test_nothing_that_a_job_prints_drives_the_terminal(message: str, pretty: bool, colour: bool) -> None:
    for line in show(Look(pretty, colour), row(message), row("after")):
        assert _ALLOWED.fullmatch(line)
        assert colour or "\x1b" not in line
