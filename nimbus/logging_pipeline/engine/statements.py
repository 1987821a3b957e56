"""What the embedded engine lets through: one plain statement about its own tables, and nothing else.

The engine library runs several statements at once, reads the host's files and opens URLs when asked to; a
real server refuses or is configured not to. This guard never executes anything. Called by `http` only.

It drops comments, so that the engine's idea of where a comment ends can never differ from ours, and it
refuses what it does not know (statement kinds, table engines, table functions) instead of listing evils.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from nimbus.model.errors import Refused

DEFAULT_FORMAT = "TabSeparated"  # what ClickHouse's HTTP interface answers with where nothing was asked for

_TOKEN = re.compile(
    rb"""(?P<space>[\s\0]+)
      | (?P<comment>--[^\n]*|/\*.*?\*/)
      | (?P<string>'(?:[^'\\]|\\.|'')*')
      | (?P<quoted>"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>[0-9][A-Za-z0-9_.]*)
      | (?P<mark>[-+*/%=<>!,.()\[\]{}:?|&^~@;])""",
    re.VERBOSE | re.DOTALL,
)
_SHORT_BYTES = 8192  # texts that are remembered: 2 MiB at most
_REST_OF_LINE = re.compile(rb"[ \t]*\r?\n?")
READ_KINDS = frozenset({"select", "with", "show", "describe", "desc", "exists", "explain", "check"})
_KINDS = READ_KINDS | {"insert", "create", "alter", "drop", "optimize", "truncate", "delete"}
_CREATES = frozenset({"database", "table", "view", "materialized"})
_ENGINES = frozenset({"atomic", "memory", "null"})  # and all of the MergeTree family
_REFUSED_WORDS = frozenset({"outfile", "infile", "dictionary", "attach", "detach", "freeze", "fetch"})
_TABLE_FUNCTIONS = frozenset(
    {"numbers", "numbers_mt", "zeros", "zeros_mt", "values", "view", "null", "generateseries", "generate_series"}
)
# functions that reach outside of the tables, or only burn time
_REFUSED_CALLS = re.compile(r"(file|disk|sleep\w*|dict\w+|joinget\w*|catboost\w*|executable\w*|ai[A-Z]\w*|ai_\w+)")


@dataclass(frozen=True)
class Statement:
    """One statement: `sql` without comments; for an INSERT with inline data, `data` and the format it is in."""

    kind: str
    sql: str
    format: str
    data: bytes | None = None


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str

    @property
    def name(self) -> str:
        """A word or a quoted identifier, the way the engine compares keywords."""
        bare = self.text[1:-1] if self.kind == "quoted" else self.text
        return bare.lower()


def parse_statement(text: bytes, table_functions: frozenset[str]) -> Statement:
    """The statement in `text`; Refused where it is none, more than one, or reaches beyond the engine's tables.

    `table_functions` are the lower-case names that the engine itself lists: all but a few are refused.
    """
    # the pipeline's questions are a few fixed texts, and what differs comes as parameters
    return (_parse_again if len(text) <= _SHORT_BYTES else _parse)(text, table_functions)


def _parse(text: bytes, table_functions: frozenset[str]) -> Statement:
    tokens, rest = _scan(text)
    significant = [token for token in tokens if token.kind != "space"]
    if not significant:
        raise Refused("an empty query: send one statement")
    kind = significant[0].name if significant[0].kind == "word" else ""
    if kind not in _KINDS:
        raise Refused(f"statement {significant[0].text[:32]!r} is not accepted here")
    _check(significant, kind, table_functions)
    sql = "".join(token.text for token in tokens if token.kind != "format").strip()
    return Statement(kind, sql, _format_of(significant), rest)


_parse_again = lru_cache(maxsize=256)(_parse)


def _scan(text: bytes) -> tuple[list[_Token], bytes | None]:
    """Tokens of the statement, comments made spaces, and the inline data after `INSERT ... FORMAT name`."""
    tokens: list[_Token] = []
    position, depth, words = 0, 0, []
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or text.startswith(b"/*", position) != (match.lastgroup == "comment" and match[0][:1] == b"/"):
            raise Refused("the query holds an open quote or a character that is not accepted outside of quotes")
        position, kind = match.end(), match.lastgroup or ""
        if match[0] == b";":
            if text[position:].strip():
                raise Refused("one statement a request: nothing may follow a semicolon")
            break
        if kind == "comment":
            kind, piece = "space", " "
        else:
            piece = _decode(match[0])
        tokens.append(_Token(kind, piece))
        depth += {"(": 1, ")": -1}.get(piece, 0)
        if kind == "word" and depth == 0:
            words.append(piece.lower())
            if words[0] == "insert" and words[-2:-1] == ["format"] and not {"select", "with", "values"} & set(words):
                return _without_format(tokens), _cut_data(text, position)
    return tokens, None


def _cut_data(text: bytes, position: int) -> bytes:
    """What follows the format's name: binary as it is, without the rest of that line. Copied once: it may be large."""
    rest = _REST_OF_LINE.match(text, position)
    return text[rest.end() if rest else position :]


def _without_format(tokens: list[_Token]) -> list[_Token]:
    """The INSERT up to its FORMAT clause; the format's name stays as a token of its own kind."""
    cut = max(index for index, token in enumerate(tokens[:-1]) if token.kind == "word")
    return [*tokens[:cut], _Token("space", " "), _Token("format", tokens[-1].text)]


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused("the query is not UTF-8") from None


def _check(tokens: list[_Token], kind: str, table_functions: frozenset[str]) -> None:
    names = [token.name if token.kind in ("word", "quoted") else "" for token in tokens]
    follows = [*(token.text for token in tokens[1:]), ""]
    if kind == "create" and names[1] not in _CREATES:
        raise Refused("only databases, tables and views can be created here")
    if kind == "insert" and "function" in names[1:4]:
        raise Refused("INSERT INTO FUNCTION is not accepted here")
    for position, (token, name, following) in enumerate(zip(tokens, names, follows, strict=True)):
        if token.kind == "word" and name in _REFUSED_WORDS:
            raise Refused(f"{token.text} is not accepted here")
        if following == "(" and name:
            _check_call(token, name, table_functions)
        if name == "default" and following == ".":
            raise Refused("the database `default` is not served here: it maps the host's files")
        if token.kind == "word" and name == "engine" and kind == "create":
            _check_engine(names[position + 1 :])


def _check_call(token: _Token, name: str, table_functions: frozenset[str]) -> None:
    bare = token.text.strip('"`')
    known = name in table_functions and name not in _TABLE_FUNCTIONS
    if known or _REFUSED_CALLS.fullmatch(bare) or _REFUSED_CALLS.fullmatch(name):
        raise Refused(f"the function {bare[:64]} is not accepted here")


def _check_engine(following: list[str]) -> None:
    engine = next((name for name in following if name), "")
    if engine not in _ENGINES and not engine.endswith("mergetree"):
        raise Refused(f"the table engine {engine[:64]!r} is not accepted here: the MergeTree family is")


def _format_of(tokens: list[_Token]) -> str:
    """The output (or inline input) format that the statement names at its end."""
    if tokens[-1].kind == "format":
        return tokens[-1].text
    if len(tokens) >= 2 and tokens[-2].name == "format" and tokens[-1].kind == "word":
        return tokens[-1].text
    return DEFAULT_FORMAT
