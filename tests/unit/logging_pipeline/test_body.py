"""A body decoded in one call and one gone through row by row give the same, whatever it holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nimbus.logging_pipeline.ingest.body import (
    MAX_MESSAGE_CHARS,
    MAX_ROWS,
    MAX_SKEW_MS,
    Batch,
    parse_batch,
    parse_each,
    parse_whole,
)
from nimbus.logging_pipeline.rows import MAX_SEQ, STREAMS
from nimbus.model.errors import Refused

NOW_MS = 1_800_000_000_000
odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.just([]),
    st.just({"seq": 1}),
)
good_rows = st.fixed_dictionaries(
    {
        "seq": st.integers(0, 40) | st.sampled_from([MAX_SEQ, MAX_SEQ - 1]),
        "ts_ms": st.integers(NOW_MS - 2 * MAX_SKEW_MS, NOW_MS + 2 * MAX_SKEW_MS) | st.integers(),
        "stream": st.sampled_from(sorted(STREAMS)),
        "message": st.text(st.characters(exclude_categories=()), max_size=12),  # NUL and lone surrogates too
    },
    optional={"level": odd_values, "step": odd_values, "org_id": odd_values, "x": odd_values},
)
odd_rows = st.dictionaries(
    st.sampled_from(["seq", "ts_ms", "stream", "message", "level", "\ud800"]),
    odd_values | st.sampled_from(sorted(STREAMS)),
    max_size=5,
)
rows_lists = st.lists(good_rows | good_rows | odd_rows | odd_values, max_size=8)


def judge(body: bytes) -> Batch | str:
    """What row by row makes of a body: the rows, or the words of its refusal."""
    try:
        return parse_each(body, NOW_MS)
    except Refused as error:
        return str(error)


def check_both_ways(body: bytes) -> None:
    """Where the one call takes a body, it takes what row by row takes."""
    whole = parse_whole(body, NOW_MS)
    assert whole is None or whole == judge(body)


@given(rows_lists, st.booleans(), st.booleans())
def test_a_body_taken_in_one_call_gives_what_row_by_row_gives(rows: list[Any], ascii_only: bool, spaced: bool) -> None:
    text = json.dumps({"rows": rows}, ensure_ascii=ascii_only, indent=1 if spaced else None)
    body = text.encode("utf-8", "surrogatepass")
    check_both_ways(body)


@given(st.lists(good_rows, max_size=8))
def test_a_body_in_order_is_taken_in_one_call(rows: list[Any]) -> None:
    body = json.dumps({"rows": rows}, ensure_ascii=False).encode("utf-8", "replace")
    assert parse_whole(body, NOW_MS) == judge(body)


@given(st.lists(good_rows, max_size=8), st.data())
def test_a_body_with_bytes_struck_out_or_put_in_is_taken_alike(rows: list[Any], data: st.DataObject) -> None:
    body = bytearray(json.dumps({"rows": rows}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body)))
        if data.draw(st.booleans()) and place < len(body):
            del body[place]
        else:
            body[place:place] = data.draw(
                st.sampled_from([b'"', b"\\", b"\0", b"\xff", b"{", b",", b"1e3", b"\xed\xa0\x80", b"-"])
            )
    check_both_ways(bytes(body))


@given(st.binary(max_size=60))
@example(b'\xef\xbb\xbf{"rows":[]}')
@example('{"rows":[]}'.encode("utf-16"))
def test_no_bytes_make_the_parser_fail_otherwise_than_by_refusing(body: bytes) -> None:
    check_both_ways(body)


ROW = b'{"seq":0,"ts_ms":1800000000000,"stream":"stdout","message":"a"%s}'


@pytest.mark.parametrize(
    "inside",
    [
        ROW % b',"seq":5',
        ROW % b',"message":null',
        ROW % b',"x":"\xff"',
        ROW % b',"x":1e999',
        ROW % (b',"ts_ms":' + b"9" * 300),
        ROW % (b',"ts_ms":' + b"9" * 5000),
        ROW % b',"s\\u0065q":3',
        ROW % b',"x":"\\ud83d"',
        ROW % (b',"x":' + b"[" * 200 + b"]" * 200),
        ROW.replace(b'"a"', b'"\\u0000\\ud83d\\ude00"') % b"",
        ROW.replace(b"0,", b"-0,", 1) % b"",
        ROW.replace(b"0,", b"1.0,", 1) % b"",
    ],
)
def test_json_that_decoders_disagree_about_is_taken_alike(inside: bytes) -> None:
    check_both_ways(b'{"rows":[' + inside + b"]}")
    check_both_ways(b'{"rows":[1],"rows":[' + inside + b"]}")


def test_what_is_not_utf_8_is_shown_as_such_and_the_rest_of_the_body_is_taken() -> None:
    good = ROW.replace(b":0,", b":1,", 1) % b""
    batch = parse_batch(b'{"rows":[' + ROW.replace(b'"a"', b'"a\xffb"') % b"" + b"," + good + b"]}", NOW_MS)
    assert [row.message for row in batch.rows] == ["a\ufffdb", "a"]
    assert batch.refused == ()


def test_level_and_step_are_never_the_bodys() -> None:
    [row] = parse_batch(b'{"rows":[' + ROW % b',"level":"error","step":7' + b"]}", NOW_MS).rows
    assert (row.level, row.step) == ("info", 0)


def test_more_rows_than_a_request_may_hold_are_refused_whole_both_ways() -> None:
    body = b'{"rows":[' + b",".join([ROW % b""] * (MAX_ROWS + 1)) + b"]}"
    assert parse_whole(body, NOW_MS) is None
    with pytest.raises(Refused):
        parse_batch(body, NOW_MS)


def test_a_message_may_have_the_longest_length_and_not_one_character_more() -> None:
    body = {
        "rows": [
            {"seq": n, "ts_ms": NOW_MS, "stream": "stdout", "message": "ü" * (MAX_MESSAGE_CHARS + n)} for n in (0, 1)
        ]
    }
    batch = parse_batch(json.dumps(body).encode(), NOW_MS)
    assert len(batch.rows[0].message) == MAX_MESSAGE_CHARS
    assert [bad.seq for bad in batch.refused] == [1]
