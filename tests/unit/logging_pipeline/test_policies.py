"""The users and row policies for real servers: what the page prints, in ClickHouse's own grammar, for our own tables.

The embedded engine has no access control, so that nothing here can show what a server does with them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.store.migrate import migrate, split_statements
from tests.unit.logging_pipeline.test_schema import describe, open_empty

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "clickhouse"
PAGE = (ROOT / "docs" / "clickhouse.md").read_text()
FILES = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
STATEMENTS = [part for name in ("users.sql", "policies.sql") for part in split_statements(FILES[name])]
TABLES = {"nimbus.ci_logs", "nimbus.ci_logs_links", "nimbus.ci_logs_migrations"}


@pytest.mark.parametrize("name", FILES)
def test_the_page_prints_each_file_as_it_is(name: str) -> None:
    kind = "xml" if name.endswith(".xml") else "sql"
    assert f"`{name}`:\n\n```{kind}\n{FILES[name].rstrip()}\n```\n" in PAGE
    assert f"](../deploy/clickhouse/{name})" in PAGE


async def test_the_schema_on_the_page_is_what_the_migrations_make(engine: Endpoint) -> None:
    printed = PAGE.partition("The result:\n\n```sql\n")[2].partition("```")[0]
    async with open_empty(engine, "page_made") as (made, settings), open_empty(engine, "page_read") as (read, _):
        await migrate(made, settings)
        await read.command("CREATE DATABASE page_read")
        for statement in split_statements(printed):
            await read.command(statement.replace("nimbus.", "page_read."))
        assert await describe(read) == await describe(made)


async def test_the_server_s_own_parser_takes_every_statement(engine: Endpoint) -> None:
    async with open_empty(engine, "policies_parsed") as (table, _):
        for statement in STATEMENTS:
            told = await table.select("SELECT formatQuery({text:String}) AS text", {"text": statement})
            assert told[0]["text"].startswith(("CREATE ", "GRANT ", "REVOKE ")), statement
        broken = await table.select("SELECT formatQueryOrNull('CREATE ROW POLICY a ON b USING TO c') AS text", {})
        assert broken == [{"text": None}]


async def test_every_setting_of_a_profile_is_one_that_the_engine_knows(engine: Endpoint) -> None:
    profiles = [statement for statement in STATEMENTS if statement.startswith("CREATE SETTINGS PROFILE")]
    named = {name for profile in profiles for name in re.findall(r"^\s+(\w+) = ", profile, re.MULTILINE)}
    async with open_empty(engine, "policies_settings") as (table, _):
        known = await table.select(
            "SELECT name FROM system.settings WHERE name IN {names:Array(String)}", {"names": sorted(named)}
        )
    assert len(named) > 10
    assert {entry["name"] for entry in known} == named


async def test_every_table_that_holds_a_tenant_s_rows_has_its_grants_and_policies(engine: Endpoint) -> None:
    async with open_empty(engine, "policies_tables") as (table, settings):
        await migrate(table, settings)
        told = await table.rows_of("SELECT name FROM system.tables WHERE database = 'policies_tables'")
        tenants = await table.rows_of(
            "SELECT table FROM system.columns WHERE database = 'policies_tables' AND name = 'org_id'"
        )
    assert {f"nimbus.{entry['name']}" for entry in told} == TABLES
    for entry in tenants:
        name = f"nimbus.{entry['table']}"
        policies = [part for part in STATEMENTS if part.startswith("CREATE ROW POLICY") and f" ON {name}\n" in part]
        assert ["nimbus_own_org" in part for part in policies] == [True, False]  # the limit before the permission
        assert "RESTRICTIVE TO nimbus_reader" in policies[0]
        assert f"GRANT SELECT, INSERT ON {name} TO nimbus_writer" in STATEMENTS


def test_a_reader_is_given_nothing_but_the_rows_of_tables_with_a_policy() -> None:
    grants = [part for part in STATEMENTS if part.startswith("GRANT ") and part.endswith(" TO nimbus_reader")]
    assert grants == [f"GRANT SELECT ON {name} TO nimbus_reader" for name in ("nimbus.ci_logs", "nimbus.ci_logs_links")]
    profile = next(
        part for part in STATEMENTS if part.startswith("CREATE SETTINGS PROFILE IF NOT EXISTS nimbus_reading")
    )
    for line in profile.splitlines()[1:]:
        assert line.rstrip(",").endswith(" CONST")
    assert "readonly = 1 CONST" in profile
    assert "SQL_org_id = 1 CONST" in FILES["users.sql"]
    assert "REVOKE SOURCES ON *.* FROM nimbus_writer, nimbus_migrator, nimbus_reader" in STATEMENTS


def test_no_user_comes_with_a_password_that_works() -> None:
    users = [part for part in STATEMENTS if part.startswith("CREATE USER")]
    assert len(users) == 3
    for user in users:
        told = re.search(r"IDENTIFIED WITH sha256_hash BY '([^']*)'", user)
        assert told is not None
        assert not re.fullmatch(r"[0-9a-fA-F]{64}", told[1])


def test_names_are_made_before_they_are_used() -> None:
    made: set[str] = set()
    for statement in STATEMENTS:
        used = re.findall(r"\bTO ((?:nimbus_\w+(?:, )?)+)", statement) + re.findall(r"DEFAULT ROLE (\w+)", statement)
        for name in ", ".join(used).split(", "):
            assert not name or name in made, statement
        created = re.match(r"CREATE (?:ROLE|USER|SETTINGS PROFILE) IF NOT EXISTS (\w+)", statement)
        made |= {created[1]} if created else set()
