"""What is left of a hostile line: text, tabs and colours, as a terminal would show them at the line's end."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.wire.terminaltext import PLAIN, Style, apply_colour, plain_text, show_line

_SEQUENCES = (
    "\x1b[31m", "\x1b[1;4m", "\x1b[0m", "\x1b[m", "\x1b[38;5;200m", "\x1b[48;2;1;2;3m", "\x1b[38:2::9:8:7m", "\x1b[22m",
    "\x1b[K", "\x1b[2K", "\x1b[J", "\x1b[2J", "\x1b[5G", "\x1b[3C", "\x1b[2D", "\x1b[9999C", "\x1b[1A", "\x1b[?25l",
    "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\", "\x1b]52;c;aGk=", "\x1bP$q\x1b\\", "\x1b", "\x1b[", "\x1b[38;5",
    "\x9b3", "\x9d0;t\x9c", "\x1b(0", "\x1bc", "\r", "\b", "\n", "\t", "\0", "\x7f", "\u202e", "\u2066", "\ufeff",
    "\x85", "\ud800",
)  # fmt: skip
hostile = st.lists(st.one_of(st.sampled_from(_SEQUENCES), st.text(max_size=6), st.sampled_from("ab 19"))).map("".join)
_ALLOWED = re.compile(r"(?:\x1b\[[0-9;]*m|[^\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff])*")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain", "plain"),
        ("a\tb", "a\tb"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("\x1b[31mred", "\x1b[31mred\x1b[0m"),
        ("\x1b[31mred\x1b[32mgreen", "\x1b[31mred\x1b[0;32mgreen\x1b[0m"),
        ("\x1b[31m\x1b[1m\x1b[0mplain again", "plain again"),
        ("\x1b[38;2;1;2;3mx", "\x1b[38;2;1;2;3mx\x1b[0m"),
        ("\x1b[38:2::1:2:3mx", "\x1b[38;2;1;2;3mx\x1b[0m"),
        ("\x1b[38;5;208;1mx", "\x1b[1;38;5;208mx\x1b[0m"),
        ("\x1b[8mseen\x1b[0m", "seen"),
        ("\x1b[38;5;999mx", "x"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]52;c;aGk=\x1b\\after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP$q\x1b\\after", "after"),
        ("\x1b[2J\x1b[Hstill here", "still here"),
        ("\x1b[?1049h\x1b[6n", ""),
        ("\x1b[>4;2m\x1b[?1m", ""),
        ("\x1bc\x1b(0reset", "reset"),
        ("\x9b31mc1\x9d0;t\x07", "\x1b[31mc1\x1b[0m"),
        ("bell\x07", "bell"),
        ("admin\u202egnp.exe", "admingnp.exe"),
        ("two\nlines", "two\u240alines"),
        ("half\ud83d", "half\ufffd"),
        ("cut\x1b", "cut"),
        ("cut\x1b[3", "cut"),
        ("cut\x1b]0;never ended", "cut"),
    ],
)
def test_a_line_keeps_its_colours_and_loses_what_drives_a_terminal(line: str, shown: str) -> None:
    assert show_line(line) == shown


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("10%\r20%\r", "20%"),
        ("100%\r7%", "7%0%"),
        ("100%\r\x1b[K7%", "7%"),
        ("100%\r\x1b[J7%", "7%"),
        ("old\x1b[2K\x1b[1Gnew", "new"),
        ("old\x1b[2Knew", "   new"),
        ("|\b/\b-\bdone", "done"),
        ("starting\x1b[12G[ok]", "starting   [ok]"),
        ("\x1b[31mfail\x1b[0m\rpass", "pass"),
        ("\x1b[31mfail\x1b[0m\rok", "ok\x1b[31mil\x1b[0m"),
        ("far\x1b[99999Cx", "far" + " " * 253 + "x"),
        ("windows\r", "windows"),
        ("\r\r\r", ""),
    ],
)
def test_of_a_line_that_was_rewritten_the_last_state_is_left(line: str, shown: str) -> None:
    assert show_line(line) == shown


@given(hostile)
def test_nothing_but_text_tabs_and_colours_comes_out(line: str) -> None:
    shown = show_line(line)
    assert _ALLOWED.fullmatch(shown)
    assert show_line(shown) == shown
    assert plain_text(line) == re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert plain_text(plain_text(line)) == plain_text(line)
    shown.encode()


_STEPS = st.lists(st.one_of(st.text("abcdef \t", min_size=1, max_size=5), st.sampled_from(["\r", "\b", "K", "2K"])))


@given(_STEPS)
def test_the_end_of_a_line_is_that_of_a_terminal(steps: list[str]) -> None:
    row: dict[int, str] = {}  # a terminal that is too simple to be wrong: cells by their column
    column = 0
    for step in steps:
        if step == "\r":
            column = 0
        elif step == "\b":
            column = max(0, column - 1)
        elif step in ("K", "2K"):
            row = {place: letter for place, letter in row.items() if step == "K" and place < column}
        else:
            row |= {column + place: letter for place, letter in enumerate(step)}
            column += len(step)
    line = "".join(f"\x1b[{step}" if step in ("K", "2K") else step for step in steps)
    width = max(row, default=-1) + 1
    assert show_line(line) == "".join(row.get(place, " ") for place in range(width))


@pytest.mark.parametrize(
    "piece", [*_SEQUENCES, "\x1b[2K\x1b[255Gx", "\x1b[38;5;1mx\r", "x\x1b[1;2;3;4;5m", "\x1b]", "\x1b[0;"]
)
def test_work_grows_with_the_line_and_not_faster(piece: str) -> None:
    def count(pieces: int) -> int:
        """Python-level events: what a quadratic walk could not hide."""
        events = 0

        def trace(*_: object) -> Any:
            nonlocal events
            events += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            show_line(piece * pieces)
        finally:
            sys.settrace(before)
        return events

    count(50)  # fills the cache of colours
    small, large = count(200), count(800)
    assert large <= 4 * small + 200
    assert len(show_line(piece * 4000)) <= 4000 * len(piece) * 30 + 300


def test_attributes_end_by_their_own_codes_and_unknown_ones_change_nothing() -> None:
    style = apply_colour(PLAIN, "1;3;4;31;44")
    assert style == Style((1, 3, 4), "31", "44")
    assert apply_colour(style, "22;24") == Style((3,), "31", "44")
    assert apply_colour(style, "39;49;23;22;4:0") == PLAIN
    assert apply_colour(style, "777;99999;58;5;1") == style
    assert apply_colour(style, "") == apply_colour(style, "1;0") == PLAIN
