"""wire/fcanswers.py: what a VMM answers, the lies of a hostile one included."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nimbus.model.errors import HostFault
from nimbus.wire.fcanswers import (
    MAX_FAULT_CHARS,
    InstanceInfo,
    parse_config,
    parse_connected,
    parse_fault,
    parse_instance,
    parse_version,
    parse_version_answer,
)
from nimbus.wire.firecracker import Version

INSTANCE = {"app_name": "Firecracker", "id": "nb1-2", "state": "Paused", "vmm_version": "1.16.1"}
PARSERS: list[Callable[[bytes], object]] = [
    parse_config,
    parse_connected,
    parse_fault,
    parse_instance,
    parse_version_answer,
]


def test_an_instance_says_who_it_is_and_how_far() -> None:
    assert parse_instance(json.dumps(INSTANCE).encode()) == InstanceInfo("nb1-2", "Paused", Version(1, 16, 1))


@pytest.mark.parametrize(
    "change", [{"id": "a b"}, {"id": ""}, {"id": 3}, {"state": "Dreaming"}, {"vmm_version": "new"}, {"vmm_version": 1}]
)
def test_an_instance_that_makes_no_sense_is_the_hosts_fault(change: dict[str, object]) -> None:
    with pytest.raises(HostFault):
        parse_instance(json.dumps(INSTANCE | change).encode())


@pytest.mark.parametrize(
    ("text", "version"),
    [("1.16.1", Version(1, 16, 1)), ("1.17.0-dev", Version(1, 17)), ("0.25.2-g12-dirty.1", Version(0, 25, 2))],
)
def test_versions_are_ordered_numbers(text: str, version: Version) -> None:
    assert parse_version(text) == version
    assert Version(1, 9) < Version(1, 16) < Version(1, 16, 1)


@pytest.mark.parametrize("text", ["", "1.16", "v1.16.1", "1.16.1\n", "1.16.1 ", "1.99999.1", "1.-1.2", "\u0661.1.1"])
def test_what_is_no_version_is_named(text: str) -> None:
    with pytest.raises(HostFault):
        parse_version(text)


def test_a_fault_is_surfaced_in_firecrackers_own_words() -> None:
    said = "The requested operation is not supported before starting the microVM."
    assert parse_fault(json.dumps({"fault_message": said}).encode()) == said


def test_a_refusal_of_the_http_server_below_is_surfaced_too() -> None:
    assert parse_fault(b'{ "error": "Too long.\nDropped." }') == "Too long.\\nDropped."


def test_a_fault_cannot_write_on_a_terminal_nor_fill_a_log() -> None:
    fault = parse_fault(json.dumps({"fault_message": "\x1b[2Jhi\r\n\ud800" + "x" * 99_999}).encode())
    assert fault.startswith("\\x1b[2Jhi\\r\\n\\ud800x")
    assert fault.isprintable()
    assert len(fault) < MAX_FAULT_CHARS + 40


@pytest.mark.parametrize("line", [b"OK 1073741824\n", b"OK 0\n"])
def test_a_port_that_was_taken_is_told(line: bytes) -> None:
    parse_connected(line)


@pytest.mark.parametrize("line", [b"", b"OK\n", b"OK 1", b"ok 1\n", b"OK 1\nOK 2\n", b"OK 12345678901\n", b"OK -1\n"])
def test_any_other_word_of_the_vsock_is_the_hosts_fault(line: bytes) -> None:
    with pytest.raises(HostFault):
        parse_connected(line)


@pytest.mark.parametrize("parse", PARSERS)
@settings(deadline=None)
@given(data=st.binary(max_size=200))
@example(data=b"[" * 100_000)
@example(data=b'{"firecracker_version": "\\ud800"}')
@example(data=b'{"id": NaN}')
def test_no_bytes_do_more_than_be_refused(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        parse(data)
    except HostFault as refused:
        str(refused).encode()  # a message with a lone surrogate could not be logged
