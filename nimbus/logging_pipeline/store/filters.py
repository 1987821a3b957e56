"""Which rows a reader wants among those of a scope, as conditions with typed parameters. Pure.

Nothing of a caller becomes part of a statement: values travel as parameters, and what LIKE would take for a wildcard
is escaped. Called by the planners of pages, search and counts.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

# what the store takes for one word: ASCII letters and digits, and everything beyond ASCII
_WORD = re.compile(r"[0-9A-Za-z\u0080-\U0010ffff]+")
# lower() of the store knows ASCII only
_SMALL = {big: big + 32 for big in range(ord("A"), ord("Z") + 1)}


class Match(enum.StrEnum):
    """How a text is looked for. Letters from A to Z match in either case."""

    TOKEN = "token"  # noqa: S105 - no secret; all of its words stand in the line, each whole
    SUBSTRING = "substring"


@dataclass(frozen=True, slots=True)
class Phrase:
    """The text that is looked for."""

    text: str
    match: Match = Match.TOKEN

    @property
    def words(self) -> tuple[str, ...]:
        """Its different words, in small letters."""
        return tuple(dict.fromkeys(_WORD.findall(self.text.translate(_SMALL))))


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Empty tuples and None let everything through."""

    since_ms: int | None = None
    until_ms: int | None = None  # the first moment that is not wanted
    levels: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    step: int | None = None
    phrase: Phrase | None = None


EVERYTHING = RowFilter()


@dataclass(frozen=True, slots=True)
class Select:
    """One statement that reads, with its typed parameters and the settings of the store that it is best run with."""

    sql: str
    parameters: dict[str, object]
    settings: tuple[str, ...] = ()


def plan_filter(wanted: RowFilter) -> tuple[list[str], dict[str, object]]:
    """The conditions that `wanted` adds, and their parameters."""
    conditions: list[str] = []
    parameters: dict[str, object] = {}
    if wanted.since_ms is not None:
        conditions.append("ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')")
        parameters["since"] = wanted.since_ms
    if wanted.until_ms is not None:
        conditions.append("ts < fromUnixTimestamp64Milli({until:Int64}, 'UTC')")
        parameters["until"] = wanted.until_ms
    if wanted.levels:
        conditions.append("has({levels:Array(String)}, level)")
        parameters["levels"] = list(wanted.levels)
    if wanted.streams:
        conditions.append("has({streams:Array(String)}, stream)")
        parameters["streams"] = list(wanted.streams)
    if wanted.step is not None:
        conditions.append("step = {step:UInt32}")
        parameters["step"] = wanted.step
    if wanted.phrase is not None:
        conditions.append(_plan_phrase(wanted.phrase, parameters))
    return conditions, parameters


def _plan_phrase(phrase: Phrase, parameters: dict[str, object]) -> str:
    if phrase.match is Match.SUBSTRING:
        parameters["like"] = f"%{escape_like(phrase.text)}%"
        return "message ILIKE {like:String}"
    # one condition for each word: in this form the index of words answers them
    names = {f"word{number}": word for number, word in enumerate(phrase.words)}
    parameters.update(names)
    return " AND ".join(f"hasToken(lower(message), {{{name}:String}})" for name in names) or "0"


def escape_like(text: str) -> str:
    """The text as a LIKE pattern that means only itself."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
