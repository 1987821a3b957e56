"""The second net under output that was made to break it: none is dear, none comes through, nothing falls over."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.logging_pipeline.ingest.masknet import MaskNet
from nimbus.logging_pipeline.ingest.needles import Needles
from nimbus.logging_pipeline.ingest.shapes import ALARMS, find_shapes
from nimbus.logging_pipeline.rows import Row
from tests.unit.logging_pipeline.nets import CUT, INNOCENT, PEM, SECRET, SOURCE, TOKENS, Known, hide

_FRAGMENTS = [
    *TOKENS.values(), *PEM, *INNOCENT, SECRET, SECRET[:12], SECRET[12:], "\x1b[31m", "%20", "\\n", "\n", "\r", " ",
    "é", "日本", "://", "user:pass@", "Bearer ", "AUTHORIZATION: ", "eyJ", "sig=", "", "\ud800", "\U0010ffff",
    "x" * CUT, "é" * (CUT // 2),
]  # fmt: skip
_TEXT = st.lists(st.sampled_from(_FRAGMENTS), max_size=4).map("".join)
_ROWS = st.lists(st.tuples(_TEXT, st.sampled_from(["stdout", "stderr"])), max_size=4)


@settings(deadline=None, max_examples=50)
@given(requests=st.lists(_ROWS, max_size=4), first=st.sampled_from([0, 5]))
def test_whatever_comes_every_row_leaves_and_none_shows_a_whole_secret(
    requests: list[list[tuple[str, str]]], first: int
) -> None:
    net = MaskNet(Known(), lambda kind, rows: None)
    seq = first
    for request in requests:
        rows = [Row(seq + at, 1, stream, "info", text) for at, (text, stream) in enumerate(request)]
        seq += len(rows)
        shown = net.hide(SOURCE, rows)
        assert [row.seq for row in shown] == [seq - len(rows) + at for at in range(len(rows))]
        assert not any(SECRET in row.message for row in shown)


def _hostile(size: int) -> list[str]:
    return [
        "a" * size,
        "ghp_" * (size // 4),
        "-eyJ" * (size // 4),
        "-eyJaaaaaaaaa.eyJ" * (size // 17),
        "://" * (size // 3),
        "://a:" * (size // 5),
        "authorization: bearer " * (size // 22),
        "-----BEGIN PRIVATE KEY-----" * (size // 27),
        "sig=" * (size // 4),
        "basic " * (size // 6),
    ]


def test_no_line_is_looked_at_more_often_than_its_length_allows() -> None:
    for size in (1000, 64_000):
        for line in _hostile(size):
            counting = CountingPattern()
            find_shapes(line.encode(), counting)
            assert counting.calls <= 10 + size // 64


@dataclass
class CountingPattern:
    """The shapes' alarms, counting how often they are asked for."""

    calls: int = 0

    def search(self, text: bytes, at: int) -> object:
        self.calls += 1
        return ALARMS.search(text, at)


def test_an_org_that_prints_the_beginnings_of_its_secrets_makes_no_search_longer_than_its_text_allows() -> None:
    alike = ["a" * (16 + at) + "b" for at in range(200)]
    nested = ["c" * (16 + at) for at in range(200)]
    needles = Needles([*alike, *nested])
    for size in (1_000, 10_000, 100_000):
        for text in (b"a" * size, b"c" * size, b"ac" * (size // 2)):
            found = needles.find(text)
            assert found.checks <= 64 + size // 16 + 201


def test_where_the_search_is_given_up_whole_rows_are_hidden() -> None:
    shown = hide("before", "a" * 40_000, "behind", values=tuple("a" * (16 + at) + "b" for at in range(200)))
    assert shown == ["before", "***", "***"]


def test_the_automaton_of_the_largest_registry_keeps_its_speed() -> None:
    """Its memory holds every state: else RE2 would fall back to a search whose time grows with the registry."""
    values = [secrets.token_urlsafe(480) for _ in range(200)]
    needles = Needles(values)
    assert needles.stem_bytes * 700 <= 128 * 2**20
    text = "".join(value[:15] for value in values).encode() * 20
    assert needles.find(text).spans == []
