"""wire/qmp.py: QEMU's monitor in bytes and values; what a VMM that a guest has taken over may say included."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import HostFault
from nimbus.wire.qmp import (
    MAX_LINE_BYTES,
    Answer,
    Greeting,
    Happening,
    QmpReader,
    parse_cpus,
    parse_migration,
    parse_status,
    render_command,
)

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": []}}\r\n'
)
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n'
STRANGE = [b"no json\n", b"[1]\n", b'{"error": "no text"}\n', b'{"QMP": {}}\n', b"[" * 100_000 + b"\n"]
JSON = st.recursive(st.none() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one))
REFUSED = b'{"error": {"class": "GenericError", "desc": "State blocked"}}\r\n'


def test_a_command_is_one_line_with_only_what_it_needs() -> None:
    assert render_command("cont") == b'{"execute":"cont"}\n'
    assert json.loads(render_command("getfd", {"fdname": "state"})) == {
        "execute": "getfd",
        "arguments": {"fdname": "state"},
    }


def test_greeting_event_answer_and_refusal_are_told_apart_however_they_are_cut() -> None:
    whole = GREETING + EVENT + b'{"return": {"status": "paused"}}\r\n' + REFUSED
    for size in (1, 7, len(whole)):
        reader, told = QmpReader(), []
        for at in range(0, len(whole), size):
            told += reader.feed(whole[at : at + size])
        assert told == [
            Greeting((7, 2, 22)),
            Happening("STOP"),
            Answer({"status": "paused"}),
            Answer(fault="State blocked"),
        ]


def test_a_line_without_end_is_given_up() -> None:
    reader = QmpReader()
    assert reader.feed(b"x" * MAX_LINE_BYTES) == []
    with pytest.raises(HostFault, match="without end"):
        reader.feed(b"x")


@pytest.mark.parametrize("line", STRANGE)
def test_what_is_no_qmp_is_a_named_fault(line: bytes) -> None:
    with pytest.raises(HostFault, match="no QMP"):
        QmpReader().feed(line)


@given(st.binary(max_size=2000), st.integers(1, 50))
def test_no_bytes_raise_anything_else(data: bytes, size: int) -> None:
    reader = QmpReader()
    with suppress(HostFault):
        for at in range(0, len(data), size):
            reader.feed(data[at : at + size])


@given(JSON)
def test_no_answer_raises_anything_else(value: object) -> None:
    for parse in (parse_status, parse_migration, parse_cpus):
        with suppress(HostFault):
            parse(value)


def test_threads_come_in_the_order_of_their_vcpus() -> None:
    told = [{"cpu-index": 1, "thread-id": 41, "qom-path": "x"}, {"cpu-index": 0, "thread-id": 40}]
    assert parse_cpus(told) == (40, 41)


def test_before_a_migration_there_is_none() -> None:
    assert parse_migration({}) == "none"
    assert parse_migration({"status": "completed"}) == "completed"
