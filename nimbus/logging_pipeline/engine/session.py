"""One session of the embedded engine library: a statement in, bytes out, under the settings that it came with.

Not thread-safe and blocking: `lanes` runs one call at a time in a thread. It never parses SQL (that is `statements`)
and never sees HTTP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import chdb.state.sqlitelike as chdb_session

from nimbus.logging_pipeline.engine.statements import DEFAULT_FORMAT, Statement

DEFAULT_DATABASE = "main"  # the library's own `default` maps the host's files and is not served
# files of statistics are read over and over while a statement is planned: a third of a page's time, and no plan of ours
# depends on them
_LEAN = "use_statistics = 0, use_statistics_for_part_pruning = 0"
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
    """One of the library's sessions on a folder. Settings belong to a session and are no other's."""

    def __init__(self, path: str, *, reads_only: bool = False) -> None:
        self._path, self._reads_only = path, reads_only
        self._connection: Any = None
        self._open()

    def _open(self) -> None:
        self._connection = chdb_session.Connection(self._path)
        self._database = ""
        self._in_force: dict[str, str] = {}
        self._connection.query(f"CREATE DATABASE IF NOT EXISTS {DEFAULT_DATABASE} ENGINE = Atomic")
        self.use(DEFAULT_DATABASE)
        self._connection.query(f"SET {_LEAN}")
        if self._reads_only:  # a second fence behind `statements`; 2: settings may still be set
            self._connection.query("SET readonly = 2")

    def _reopen(self) -> None:
        former = self._connection
        self._open()  # first, since the library unloads its tables with its last session
        former.close()

    def list_table_functions(self) -> frozenset[str]:
        """The names, in lower case, of what can stand where a table does."""
        listed = self._connection.query("SELECT lower(name) FROM system.table_functions FORMAT TSV").bytes()
        return frozenset(listed.decode().split())

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
            self._apply(request.settings)
            if request.statement.data is not None:
                return self._insert(request.statement)
            return self._query(request)
        except RuntimeError as error:  # the library's one way to fail, ChdbError among them
            raise _refusal(error) from None

    def _apply(self, wanted: dict[str, str]) -> None:
        """Exactly these settings, and no other's. They stay until a request wants others: most want the same."""
        if wanted == self._in_force:
            return
        words = [f"{name} = {_quote(value)}" for name, value in wanted.items() if self._in_force.get(name) != value]
        words += [f"{name} = DEFAULT" for name in self._in_force if name not in wanted]
        try:
            self._connection.query(f"SET {', '.join(words)}")
        except RuntimeError:  # some of them may be in force now, or one in force forbids to set any
            self._reopen()
            raise
        self._in_force = dict(wanted)

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
