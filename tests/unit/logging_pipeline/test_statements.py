"""The guard before the embedded engine: one plain statement, nothing that reaches the host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.logging_pipeline.engine.statements import parse_statement
from nimbus.model.errors import Refused

TABLE_FUNCTIONS = frozenset({"file", "url", "s3", "remote", "numbers", "values", "input", "python", "view", "merge"})


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1; DROP TABLE t",
        "SELECT 1;SELECT 2",
        "SELECT ';'; SELECT 2",
        "SELECT 1 /* ; */ ; SELECT 2",
        "SELECT 'it''s' ; SELECT 2",
        "SELECT 'a\\' ; SELECT 2 --'; SELECT 3",
        "SELECT * FROM file('/etc/passwd')",
        "SELECT * FROM FILE ('/etc/passwd')",
        'SELECT * FROM "file"(\'/etc/passwd\')',
        "SELECT * FROM `file`('/etc/passwd')",
        "SELECT * FROM file/**/('/etc/passwd')",
        "SELECT * FROM url('http://169.254.169.254/')",
        "SELECT * FROM remote('h', db.t)",
        "SELECT * FROM python(x)",
        "SELECT sleep(3)",
        "SELECT sleepEachRow(1)",
        "SELECT dictGet('d', 'a', 1)",
        "SELECT aiClassify('x')",
        "SELECT * FROM default.`/etc/passwd`",
        'SELECT * FROM "default"."/etc/passwd"',
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "INSERT INTO t FROM INFILE '/etc/passwd' FORMAT CSV",
        "INSERT INTO FUNCTION file('/tmp/x', 'CSV') SELECT 1",
        "INSERT INTO TABLE FUNCTION file('/tmp/x', 'CSV') SELECT 1",
        "CREATE TABLE t ENGINE = File('CSV') AS SELECT 1",
        "CREATE TABLE t (a Int8) ENGINE URL('http://x')",
        "CREATE DATABASE d ENGINE = Filesystem('/')",
        "CREATE FUNCTION f AS (x) -> x",
        "CREATE DICTIONARY d (a Int8) PRIMARY KEY a",
        "SET readonly = 0",
        "USE system",
        "SYSTEM SHUTDOWN",
        "ATTACH TABLE t",
        "KILL QUERY WHERE 1",
        "BACKUP TABLE t TO File('/tmp/x')",
        "GRANT ALL ON *.* TO x",
        "(SELECT 1)",
        "",
        "   -- only a comment",
        ";",
        "SELECT 'open",
        "SELECT \"open",
        "SELECT `open",
        "SELECT /* open",
        "SELECT \u2018smart\u2019",
        "SELECT $$heredoc$$",
        "SELECT 1 # comment",
    ],
)  # fmt: skip
def test_what_reaches_beyond_our_tables_or_is_more_than_one_statement_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_statement(text.encode(), TABLE_FUNCTIONS)


@pytest.mark.parametrize(
    ("text", "sql", "output"),
    [
        ("SELECT 1", "SELECT 1", "TabSeparated"),
        ("select ';' ;  ", "select ';'", "TabSeparated"),
        ("SELECT 1 -- a\n, 2 /* b */ FORMAT JSON", "SELECT 1  \n, 2   FORMAT JSON", "JSON"),
        ("SELECT 'ü' FORMAT Native", "SELECT 'ü' FORMAT Native", "Native"),
        ("SELECT count() FROM numbers(3)", "SELECT count() FROM numbers(3)", "TabSeparated"),
        ("INSERT INTO t VALUES (1, 'x;y')", "INSERT INTO t VALUES (1, 'x;y')", "TabSeparated"),
        ("SHOW TABLES", "SHOW TABLES", "TabSeparated"),
    ],
)
def test_a_plain_statement_passes_without_its_comments(text: str, sql: str, output: str) -> None:
    statement = parse_statement(text.encode(), TABLE_FUNCTIONS)
    assert (statement.sql, statement.format, statement.data) == (sql, output, None)


def test_inline_data_is_never_read_as_sql() -> None:
    data = b'{"a":"; DROP TABLE t --"}\n\xff\x00file(\'/etc/passwd\')'
    statement = parse_statement(b"INSERT INTO t (a, b)\n FORMAT  JSONEachRow\n" + data, TABLE_FUNCTIONS)
    assert (statement.kind, statement.sql, statement.format) == ("insert", "INSERT INTO t (a, b)", "JSONEachRow")
    assert statement.data == data


@given(st.binary(max_size=200))
def test_any_bytes_are_either_a_statement_or_refused(text: bytes) -> None:
    try:
        parse_statement(text, TABLE_FUNCTIONS)
    except Refused:
        return
    assert text.strip()


@given(st.text(alphabet="'\"`\\;-/* \nab$#\u2018(", max_size=40))
def test_no_semicolon_outside_of_quotes_survives(text: str) -> None:
    try:
        statement = parse_statement(f"SELECT {text}".encode(), TABLE_FUNCTIONS)
    except Refused:
        return
    left = statement.sql
    for quote in ("'", '"', "`"):
        while left.count(quote) >= 2:
            first = left.index(quote)
            left = left[:first] + left[left.index(quote, first + 1) + 1 :]
    assert ";" not in left or any(quote in text for quote in "'\"`")
