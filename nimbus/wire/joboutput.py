"""What a job says with its output: GitHub's workflow commands, read from single lines of hostile text.

Sans-IO and linear in a line's length; parses and decides nothing. Texts are given as the job wrote them: before they
reach a terminal they go through `terminaltext`. Called by the log pipeline's ingest (level and step of a row) and
reading (annotations), and by `nimbus logs`.

Two spellings are known: `::error file=a.c,line=3::no such name`, and `##[error]no such name`, which the runner itself
prints. A command stands at the beginning of a line, blanks before it do not count. A line whose name is no command's is
output as any other. Groups do not nest, as on GitHub: the next one ends the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

LEVELS = ("error", "warning", "notice", "debug", "info")
OUTPUT_STREAMS = frozenset({"stdout", "stderr"})  # commands on other streams are text
GROUP, END_GROUP, STOP = "group", "endgroup", "stop-commands"
_ANNOTATIONS = frozenset({"error", "warning", "notice"})
_LEVELLED = _ANNOTATIONS | {"debug"}
_DOUBLE_COLON = _LEVELLED | {
    GROUP, END_GROUP, STOP, "add-mask", "echo", "set-output", "save-state", "set-env", "add-path", "add-matcher",
    "remove-matcher",
}  # fmt: skip
_BRACKETS = _LEVELLED | {GROUP, END_GROUP, "add-mask", "command", "section"}
_BLANK = " \t"
_MARKS = ("::", "##[")
_NAME_CHARS = 32  # longer than every name of a command
_PROPERTIES_MAX = 16
_TOKEN_CHARS = 1024  # of stop-commands: it is kept as long as the machine prints
_DIGITS = 9
_Escapes = tuple[tuple[str, str], ...]
_MESSAGE_ESCAPES: _Escapes = (("%0D", "\r"), ("%0A", "\n"), ("%25", "%"))  # the percent sign last: it undoes no other
_PROPERTY_ESCAPES: _Escapes = (("%3A", ":"), ("%2C", ","), *_MESSAGE_ESCAPES)
_BRACKET_ESCAPES: _Escapes = (("%3B", ";"), ("%5D", "]"), *_MESSAGE_ESCAPES)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = 253_402_300_799_999  # of the year 9999


@dataclass(frozen=True, slots=True)
class Command:
    """One workflow command: names in small letters, escapes undone."""

    name: str
    text: str
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """What its line is stored as."""
        return self.name if self.name in _LEVELLED else "info"


@dataclass(frozen=True, slots=True)
class Annotation:
    """An error, warning or notice, and which place of which file it is about, where the job said so."""

    level: str
    message: str
    title: str = ""
    file: str = ""
    line: int | None = None
    end_line: int | None = None
    col: int | None = None
    end_col: int | None = None


def begins_command(line: str) -> bool:
    """False for a line that cannot be one, at the cost of a comparison; true for one worth parsing."""
    return line.lstrip(_BLANK).startswith(_MARKS)


def parse_command(line: str) -> Command | None:
    """The command of a line; None where it is output as any other."""
    if not begins_command(line):
        return None
    text = line.strip(_BLANK + "\r")
    return _parse_double_colon(text) if text.startswith("::") else _parse_brackets(text)


def _parse_double_colon(text: str) -> Command | None:
    head, mark, message = text[2:].partition("::")
    return _build(head, message, _DOUBLE_COLON, ",", _PROPERTY_ESCAPES) if mark else None


def _parse_brackets(text: str) -> Command | None:
    head, mark, message = text[3:].partition("]")
    return _build(head, message, _BRACKETS, ";", _BRACKET_ESCAPES) if mark else None


def _build(head: str, message: str, known: frozenset[str], separator: str, escapes: _Escapes) -> Command | None:
    """Properties are escaped like the message, and their separators too."""
    name, _, told = head.strip(_BLANK).partition(" ")
    if len(name) > _NAME_CHARS or name.lower() not in known:
        return None
    properties: dict[str, str] = {}
    for pair in told.split(separator, _PROPERTIES_MAX)[:_PROPERTIES_MAX]:
        key, _, value = pair.strip(_BLANK).partition("=")
        word = key.rstrip(_BLANK).lower()
        if value and len(word) <= _NAME_CHARS:
            properties.setdefault(word, _unescape(value, escapes))
    return Command(name.lower(), _unescape(message, _MESSAGE_ESCAPES), properties)


def _unescape(text: str, escapes: _Escapes) -> str:
    if "%" in text:
        for escape, character in escapes:
            text = text.replace(escape, character)
    return text


class CommandReader:
    """The commands of one machine's output, line by line; between stop-commands and its token there are none."""

    def __init__(self) -> None:
        self._token = ""

    def read(self, line: str) -> Command | None:
        if not begins_command(line):
            return None
        if self._token:
            if line.strip(_BLANK + "\r").lower().startswith(f"::{self._token}::"):
                self._token = ""
            return None
        command = parse_command(line)
        if command is not None and command.name == STOP:
            token = command.text.lower()
            # the name of a command would let its next use begin again what was stopped
            if 0 < len(token) <= _TOKEN_CHARS and token not in _DOUBLE_COLON:
                self._token = token
        return command


def parse_annotation(line: str) -> Annotation | None:
    """What a line says as an error, warning or notice; None for every other line."""
    command = parse_command(line)
    return None if command is None else read_annotation(command)


def read_annotation(command: Command) -> Annotation | None:
    """The annotation that a command makes; None for a command of another kind."""
    if command.name not in _ANNOTATIONS:
        return None
    told = command.properties
    return Annotation(
        level=command.name,
        message=command.text,
        title=told.get("title", ""),
        file=told.get("file", ""),
        line=_read_number(told.get("line")),
        end_line=_read_number(told.get("endline")),
        col=_read_number(told.get("col")),
        end_col=_read_number(told.get("endcolumn")),
    )


def _read_number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= _DIGITS else None


def render_moment(ts_ms: int) -> str:
    """A row's time as people and programs read it, in UTC."""
    moment = _EPOCH + timedelta(milliseconds=min(max(ts_ms, 0), _LAST_MS))
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
