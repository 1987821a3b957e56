"""What a host tells arrives as it was told, and nothing else is taken for a heartbeat."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import Refused
from nimbus.model.labels import Arch
from nimbus.wire.heartbeat import (
    MAX_HEARTBEAT_BYTES,
    MAX_RECORDS,
    Heartbeat,
    HeartbeatReply,
    HostRoom,
    RecordLine,
    Wanted,
    parse_heartbeat,
    parse_heartbeat_reply,
    render_heartbeat,
    render_heartbeat_reply,
)

LINE = RecordLine("0a1b2c3d", "running", 12, 3, ("slot", "network", "vmm"), 250.5)
BEAT = Heartbeat(
    version="0.1.0",
    boot_id="a-boot 1f0",
    start=1763755200,
    beat=7,
    doing="working",
    vmm="qemu (tcg)",
    arch=Arch.X64,
    labels=("nimbus", "gpu"),
    total=HostRoom(8, 16384, 64, 200_000),
    free=HostRoom(6, 12288, 63, None),
    pool={"warm": 2},
    records=(LINE, RecordLine("ffffffff", "waiting", claims=("slot",))),
)


def told(**changes: object) -> bytes:
    body: dict[str, Any] = render_heartbeat(BEAT)
    return json.dumps(body | changes).encode()


def test_a_heartbeat_arrives_as_it_was_told() -> None:
    assert parse_heartbeat(told()) == BEAT


def test_a_ledger_that_could_not_be_read_is_not_an_empty_one() -> None:
    assert parse_heartbeat(told(records=None)).records is None
    assert parse_heartbeat(told(records=[])).records == ()


def test_fields_of_a_later_release_and_words_that_nobody_knows_yet_are_no_error() -> None:
    line = {"vm": "x", "state": "hibernating", "claims": ["gpu"], "colour": "red"}
    beat = parse_heartbeat(told(records=[line], doing="resting", org_id=7))
    assert beat.doing == "resting"
    assert beat.records == (RecordLine("x", "hibernating", claims=("gpu",)),)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "x" * 65},
        {"version": "1\x000"},
        {"boot_id": ""},
        {"beat": -1},
        {"arch": "vax"},
        {"labels": ["x"] * 65},
        {"total": {"cpus": 5000, "mem_mib": 1, "slots": 1}},
        {"free": {"cpus": "8", "mem_mib": 1, "slots": 1}},
        {"free": None},
        {"pool": {str(n): n for n in range(17)}},
        {"records": [{"vm": "x", "state": "running", "claims": ["c" * 33]}]},
        {"records": [{"vm": "x", "state": "running", "claims": [], "machine_id": 2**63}]},
        {"records": [{"vm": "x", "state": "running", "claims": [], "left_s": 1e300}]},
        {"records": [{"vm": "x", "state": "s", "claims": []}] * (MAX_RECORDS + 1)},
        {"records": ["x"]},
    ],
)
def test_a_heartbeat_beyond_its_bounds_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Refused):
        parse_heartbeat(told(**changes))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda x: st.lists(x, max_size=3)))
def test_no_value_in_any_field_does_more_than_be_refused(value: object) -> None:
    for name in render_heartbeat(BEAT):
        try:
            parse_heartbeat(told(**{name: value}))
        except Refused:
            continue


def test_the_fullest_ledger_fits_into_the_largest_body() -> None:
    line = RecordLine("f" * 8, "unreadable", 2**62, 2**62, ("slot", "network", "disk", "jail", "cgroup", "vmm"), -1e8)
    full = render_heartbeat(BEAT) | {"records": render_heartbeat_of(line)}
    body = json.dumps(full).encode()
    assert len(body) < MAX_HEARTBEAT_BYTES
    assert len(parse_heartbeat(body).records or ()) == MAX_RECORDS


def render_heartbeat_of(line: RecordLine) -> object:
    beat = Heartbeat(**{**vars(BEAT), "records": (line,) * (MAX_RECORDS + 5)})
    return render_heartbeat(beat)["records"]


@pytest.mark.parametrize("barred", [None, "its version 0.0.9 is older than 0.1.0"])
def test_the_answer_arrives_as_it_was_given(barred: str | None) -> None:
    reply = HeartbeatReply(Wanted.DRAINED, 15.0, barred)
    assert parse_heartbeat_reply(json.dumps(render_heartbeat_reply(reply)).encode()) == reply


def test_an_answer_cannot_make_a_host_report_without_pause() -> None:
    with pytest.raises(Refused):
        parse_heartbeat_reply(b'{"wanted": "working", "interval_s": 0}')
