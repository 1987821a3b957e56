"""A job's output on a terminal or in a pipe: rows in, lines out. Pure; asks nobody and prints nothing.

On a terminal groups are headings with what they hold indented, and errors, warnings and notices stand out with their
file and line. In a pipe each row is the line that the job printed. Both ways nothing in it drives a terminal. Called by
`nimbus logs`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nimbus.wire.joboutput import (
    END_GROUP,
    GROUP,
    OUTPUT_STREAMS,
    Annotation,
    Command,
    CommandReader,
    read_annotation,
    render_moment,
)
from nimbus.wire.terminaltext import RESET, plain_text, show_line

Row = dict[str, Any]
END_STREAM, AGENT_STREAM = "end", "agent"
_INDENT = "  "
_HEADING = "\u25b8"  # a triangle that points to what follows
_BOLD, _DIM, _RED, _YELLOW, _BLUE = "\x1b[1m", "\x1b[2m", "\x1b[1;31m", "\x1b[1;33m", "\x1b[1;34m"
_COLOURS = {"error": _RED, "warning": _YELLOW, "notice": _BLUE}
_KEPT_MACHINES = 64


@dataclass(frozen=True)
class Look:
    """How output is shown."""

    pretty: bool  # headings and indentation; otherwise lines as the job printed them
    colour: bool
    timestamps: bool = False


class View:
    """The lines of a job's rows, with the group that each machine is in."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self._outlines: OrderedDict[tuple[object, object], _Outline] = OrderedDict()

    def lines(self, row: Row) -> Iterator[str]:
        """What is shown of one row: a line, several for a message of several, none for the end of a group."""
        stamp = self.paint(_DIM, render_moment(int(row["ts_ms"]))) + " " if self.look.timestamps else ""
        for line in self._lines(row):
            yield stamp + line

    def _lines(self, row: Row) -> Iterator[str]:
        stream, message = row["stream"], row["message"]
        if stream == END_STREAM:
            return
        if stream not in OUTPUT_STREAMS:
            yield self.paint(_DIM, f"[{plain_text(stream)}]") + " " + self.text(message)
        elif not self.look.pretty:
            yield self.text(message)
        else:
            yield from self._outline(row).lines(message)

    def text(self, line: str) -> str:
        """The job's own text, harmless."""
        return show_line(line) if self.look.colour else plain_text(line)

    def paint(self, colour: str, text: str) -> str:
        """Our own text; nothing of a job's may be in it but what went through `plain_text`."""
        return f"{colour}{text}{RESET}" if self.look.colour and text else text

    def _outline(self, row: Row) -> _Outline:
        key = (row.get("machine_id"), row.get("fence"))
        if key not in self._outlines:
            self._outlines[key] = _Outline(self)
            while len(self._outlines) > _KEPT_MACHINES:
                self._outlines.popitem(last=False)
        return self._outlines[key]

    def annotation(self, told: Annotation) -> list[str]:
        """An error, warning or notice: its place, its title, its message; further lines of that are indented."""
        first, *others = told.message.replace("\r", "").split("\n")
        head = [self.paint(_COLOURS[told.level], told.level)]
        if place := render_place(told):
            head.append(self.paint(_BOLD, place))
        if told.title:
            head.append(self.paint(_BOLD, f"{plain_text(told.title)}:"))
        return [" ".join([*head, self.text(first)]), *(_INDENT + self.text(line) for line in others)]


class _Outline:
    """Where one machine's output stands in its groups."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._commands = CommandReader()
        self._inside = False

    def lines(self, message: str) -> Iterator[str]:
        command = self._commands.read(message)
        if command is None:
            yield self._indented(self._view.text(message))
        elif command.name == GROUP:
            self._inside = True
            yield self._view.paint(_BOLD, f"{_HEADING} {plain_text(command.text)}")
        elif command.name == END_GROUP:
            self._inside = False
        else:
            for line in self._command_lines(command, message):
                yield self._indented(line)

    def _indented(self, line: str) -> str:
        return _INDENT + line if self._inside else line

    def _command_lines(self, command: Command, message: str) -> list[str]:
        annotation = read_annotation(command)
        if annotation is not None:
            return self._view.annotation(annotation)
        text = plain_text(command.text)
        if command.name == "debug":
            return [self._view.paint(_DIM, f"debug {text}")]
        if command.name in ("command", "section"):
            return [self._view.paint(_BLUE if command.name == "command" else _BOLD, text)]
        return [self._view.paint(_DIM, plain_text(message))]


def render_place(told: Annotation) -> str:
    """`file:line:column` as compilers write it, as much of it as is known."""
    if not told.file:
        return ""
    places = [plain_text(told.file), told.line, told.col if told.line is not None else None]
    return ":".join(str(place) for place in places if place is not None)


def render_hit(hit: Row, view: View) -> tuple[str | None, str]:
    """A line that a search found, and the heading that it stands below; in a pipe it has its address in front."""
    job, machine = hit.get("job_id"), f"{hit['machine_id']}#{hit['fence']}"
    moment = render_moment(int(hit["ts_ms"]))
    text = view.text(hit["message"])
    if not view.look.pretty:
        return None, f"{job or '-'}:{machine}:{hit['seq']}:{moment}: {text}"
    heading = view.paint(_BOLD, f"job {job}, machine {machine}" if job else f"machine {machine}")
    place = view.paint(_DIM, f"{moment} {hit['seq']:>7}")
    return heading, f"{_INDENT}{place} {text}"
