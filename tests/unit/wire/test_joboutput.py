"""Workflow commands in a job's output: read as GitHub reads them, from lines that nobody vouches for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.wire.joboutput import (
    LEVELS,
    Annotation,
    Command,
    CommandReader,
    begins_command,
    parse_annotation,
    parse_command,
    render_moment,
)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("::group::Build the kernel", Command("group", "Build the kernel")),
        ("##[group]Run make", Command("group", "Run make")),
        ("::endgroup::", Command("endgroup", "")),
        ("##[endgroup]", Command("endgroup", "")),
        ("  ::GROUP::Padded  ", Command("group", "Padded")),
        ("::error::100%25 of%0Atwo lines%0D", Command("error", "100% of\ntwo lines\r")),
        ("::error::%250A stays", Command("error", "%0A stays")),
        (
            "::error file=src/a%2Cb.c,line=3,title=x%3A%3Ay::bad: a::b",
            Command("error", "bad: a::b", {"file": "src/a,b.c", "line": "3", "title": "x::y"}),
        ),
        ("##[error file=a.c;line=3;]bad %5D", Command("error", "bad %5D", {"file": "a.c", "line": "3"})),
        ("::add-mask::***", Command("add-mask", "***")),
        ("::debug::seen", Command("debug", "seen")),
        ("##[command]/usr/bin/git fetch", Command("command", "/usr/bin/git fetch")),
        ("::stop-commands::abc", Command("stop-commands", "abc")),
        ("::warning  file = a.c , col=::w", Command("warning", "w", {"file": " a.c"})),
    ],
)
def test_a_command_is_read_with_its_properties_and_its_escapes_undone(line: str, command: Command) -> None:
    assert parse_command(line) == command


@pytest.mark.parametrize(
    "line",
    [
        "", ":", "::", "::::", "::error", "::error:", "std::move(x)", "::std::move(x)", "x ::error::late", "##[",
        "##[error", "# [error]", "##[make]", "::command::only in brackets", "::" + "a" * 100 + "::x",
        "\x1b[31m::error::coloured",
    ],
)  # fmt: skip
def test_what_is_no_command_is_output_like_any_other(line: str) -> None:
    assert parse_command(line) is None


def test_an_annotation_tells_its_place() -> None:
    line = "::error file=src/app.js,line=10,endLine=12,col=5,endColumn=9,title=Lint::Missing semicolon"
    assert parse_annotation(line) == Annotation("error", "Missing semicolon", "Lint", "src/app.js", 10, 12, 5, 9)
    assert parse_annotation("##[warning]old") == Annotation("warning", "old")
    assert parse_annotation("::notice line=x,col=-1,endLine=99999999999::n") == Annotation("notice", "n")
    assert parse_annotation("::debug::n") is None
    assert parse_annotation("::group::error") is None


def test_between_stop_commands_and_its_token_there_are_no_commands() -> None:
    reader = CommandReader()
    lines = [
        "::stop-commands::T0ken",
        "::error::no",
        "::stop-commands::other",
        "::group::no",
        "::t0KEN::",
        "::error::yes",
    ]
    told = [reader.read(line) for line in lines]
    assert [command.name if command else None for command in told] == [
        "stop-commands", None, None, None, None, "error",
    ]  # fmt: skip


@pytest.mark.parametrize("token", ["", "error", "GROUP", "x" * 2000])
def test_a_token_that_could_not_end_it_stops_nothing(token: str) -> None:
    reader = CommandReader()
    reader.read(f"::stop-commands::{token}")
    command = reader.read("::error::heard")
    assert command is not None
    assert command.level == "error"


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["::", "##[", "]", "error", "group", " ", ",", ";", "=", "file", "%25", "%0A", "%", "\r", "\n"]
            ),
            st.text(max_size=5),
        )
    ).map("".join)
)
def test_every_line_is_read_without_an_error_and_has_a_level(line: str) -> None:
    command, annotation = parse_command(line), parse_annotation(line)
    if command is not None:
        assert begins_command(line)
        assert command.level in LEVELS
        assert len(command.text) + sum(map(len, command.properties.values())) <= len(line)
    assert annotation is None or (command is not None and annotation.level == command.level)


_TEXT = st.text(max_size=30)


@given(_TEXT, _TEXT)
def test_what_a_job_escapes_as_it_must_arrives_as_it_was(message: str, title: str) -> None:
    def escape(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    line = f"::error title={escape(title).replace(':', '%3A').replace(',', '%2C')}::{escape(message)}"
    annotation = parse_annotation(line)
    assert annotation is not None
    assert annotation.title.strip() == title.strip()
    assert annotation.message.strip() == message.strip()


def test_a_moment_is_told_in_utc_with_its_milliseconds() -> None:
    assert render_moment(1_764_000_000_123) == "2025-11-24T16:00:00.123Z"
    assert render_moment(-5) == "1970-01-01T00:00:00.000Z"
    assert render_moment(2**62) == "9999-12-31T23:59:59.999Z"
