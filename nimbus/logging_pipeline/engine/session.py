"""One session of the embedded engine library: a statement in, bytes out, settings put back afterwards.

Not thread-safe and blocking: `engine_http` runs one call at a time in a thread. It never parses SQL (that is
`statements`) and never sees HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import chdb.state.sqlitelike as chdb_session

from nimbus.logging_pipeline.engine.statements import DEFAULT_FORMAT, Statement

DEFAULT_DATABASE = "main"  # the library's own `default` maps the host's files and is not served
_CODE = re.compile(r"Code: (\d+)\. (.*)", re.DOTALL)


class EngineRefusal(Exception):
    """The engine said no: its own code and its own first line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class EngineRequest:
    """One statement with everything it needs."""

    statement: Statement
    database: str
    default_format: str
    settings: dict[str, str]
    params: dict[str, str]


@dataclass(frozen=True)
class EngineReply:
    """What a statement gave."""

    body: bytes
    format: str
    rows: int
    bytes: int
    wrote: bool


class EngineSession:
    """The library's session on one folder. Not thread-safe: the application runs one call at a time."""

    def __init__(self, path: str) -> None:
        self._connection: Any = chdb_session.Connection(path)
        self._database = ""
        self._connection.query(f"CREATE DATABASE IF NOT EXISTS {DEFAULT_DATABASE} ENGINE = Atomic")
        self.use(DEFAULT_DATABASE)
        listed = self._connection.query("SELECT lower(name) FROM system.table_functions FORMAT TSV").bytes()
        self.table_functions = frozenset(listed.decode().split())

    def use(self, database: str) -> None:
        if database != self._database:
            self._connection.query(f"USE `{database}`")
            self._database = database

    def close(self) -> None:
        self._connection.close()

    def run(self, request: EngineRequest) -> EngineReply:
        """The reply to one statement; EngineRefusal with the engine's own code where it failed."""
        try:
            self.use(request.database)
            with self._settings(request.settings):
                if request.statement.data is not None:
                    return self._insert(request.statement)
                return self._query(request)
        except RuntimeError as error:  # the library's one way to fail, ChdbError among them
            raise _refusal(error) from None

    @contextmanager
    def _settings(self, settings: dict[str, str]) -> Iterator[None]:
        done: list[str] = []
        try:
            for name, value in settings.items():
                self._connection.query(f"SET {name} = {_quote(value)}")
                done.append(name)
            yield
        finally:
            for name in done:
                self._connection.query(f"SET {name} = DEFAULT")

    def _insert(self, statement: Statement) -> EngineReply:
        with self._connection.send_insert(statement.sql, statement.format) as inserter:
            inserter.append(statement.data)
            written = inserter.finish()
        return EngineReply(b"", statement.format, written.rows_written, written.bytes_written, wrote=True)

    def _query(self, request: EngineRequest) -> EngineReply:
        statement = request.statement
        chosen = statement.format if statement.format != DEFAULT_FORMAT else request.default_format
        result = self._connection.query(statement.sql, chosen, params=request.params)
        return EngineReply(
            bytes(result.bytes()), chosen, result.rows_read(), result.bytes_read(), wrote=statement.kind == "insert"
        )


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _refusal(error: RuntimeError) -> EngineRefusal:
    match = _CODE.search(str(error))
    if match is None:
        return EngineRefusal(1002, "DB::Exception: the embedded engine failed")
    return EngineRefusal(int(match[1]), match[2].split("\n", 1)[0][:2000])
