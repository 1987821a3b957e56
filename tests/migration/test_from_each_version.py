"""A database of each earlier version, at work, becomes one of this version: same schema, every row kept, all readable.

rows/NNNN.sql is what a deployment of that version may hold beside what the versions before it held. A new migration
adds the file of the version before it, once that one has shipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nimbus.control_plane.migrate import apply_migrations, load_migrations, migrate
from nimbus.runtime.postgres import Row, Transaction, open_database
from tests.unit.control_plane.plane import Plane, open_plane
from tests.unit.control_plane.test_migrate import describe_schema

pytestmark = pytest.mark.services

ROWS = Path(__file__).parent / "rows"
STEPS = load_migrations()
EARLIER = [step.version for step in STEPS[:-1]]
SHIPPED = 6  # the version of the last release: what it writes must be taken while a rolling restart goes on
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_versions' ORDER BY 1"
_COLUMNS = """
    SELECT table_name, column_name, data_type, is_nullable, column_default
    FROM information_schema.columns WHERE table_schema = 'public'"""
_CHECKS = """
    SELECT conrelid::regclass::text AS table_name, conname, pg_get_constraintdef(oid) AS rule FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'u', 'f', 'p')"""


async def install(transaction: Transaction, version: int) -> None:
    """A database as that version left it, at work."""
    await apply_migrations(transaction, STEPS[:version])
    for step in STEPS[:version]:
        await transaction.execute((ROWS / f"{step.version:04}.sql").read_text("utf-8"))
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    await transaction.execute("INSERT INTO signing_keys (kid, private_pem) VALUES ('kid-1', $1)", pem.decode())


async def read_all(transaction: Transaction) -> Mapping[str, list[Row]]:
    """Every row of every table, by table."""
    names = [row["tablename"] for row in await transaction.fetch(_TABLES)]
    return {
        name: [dict(row) for row in await transaction.fetch(f"SELECT * FROM {name} ORDER BY {name}::text")]  # noqa: S608
        for name in names
    }


def is_kept(before: Row, after: Sequence[Row]) -> bool:
    """Whether a row stands there yet, whatever columns came to it."""
    return any(all(name in row and row[name] == value for name, value in before.items()) for row in after)


@pytest.mark.parametrize("version", EARLIER)
async def test_from_each_earlier_version_the_schema_becomes_that_of_a_fresh_install_and_every_row_is_kept(
    version: int, empty_database_dsn: str, database_dsn: str
) -> None:
    async with open_database(empty_database_dsn, pool_size=1) as old, open_database(database_dsn, pool_size=1) as fresh:
        await old.run(install, version)
        before = await old.run(read_all)
        applied = await migrate(old)
        after = await old.run(read_all)
        upgraded, expected = await old.run(describe_schema), await fresh.run(describe_schema)

    assert applied == tuple(step.name for step in STEPS[version:])
    assert upgraded == expected
    lost = {name: [row for row in rows if not is_kept(row, after[name])] for name, rows in before.items()}
    assert {name: rows for name, rows in lost.items() if rows} == {}
    assert {name: len(after[name]) for name in before} == {name: len(rows) for name, rows in before.items()}


@pytest.mark.parametrize("version", EARLIER)
async def test_what_an_earlier_version_left_is_read_and_worked_on(
    version: int, empty_database_dsn: str, redis_url: str
) -> None:
    async with open_database(empty_database_dsn, pool_size=1) as old:
        await old.run(install, version)
        await migrate(old)

    async with open_plane(empty_database_dsn, redis_url) as plane:
        seen = await look_at_all(plane)
        agent = await plane.enrol("host-3")
        grant = await plane.lease(agent)
        assert grant is not None
        renewed = await plane.renew(agent, grant)
        finished = await plane.finish(agent, grant, exit_code=0)
        job = await plane.job(101)

    assert seen == {101: "queued", 102: "completed", 103: "queued", 104: "in_progress", 105: "waiting", 106: "lost"}
    assert (grant["machine_id"], renewed.status_code, finished.status_code) == (1, 200, 200)
    assert (job["state"], job["conclusion"]) == ("completed", "success")


async def look_at_all(plane: Plane) -> dict[int, str]:
    """Every page that shows what is kept; the jobs by their states."""
    for path in ("/api/status", "/api/agents", "/api/agents/host-1", "/readyz", "/.well-known/jwks.json"):
        answer = await plane.http.get(path, headers=plane.admin())
        assert answer.status_code == 200, answer.text
    seen = {}
    for job_id in range(101, 107):
        job = await plane.job(job_id)
        events = await plane.http.get(f"/api/jobs/{job_id}/events", headers=plane.admin())
        assert events.status_code == 200, events.text
        assert job["state"] in {event["state_to"] for event in events.json()["events"]}
        seen[job_id] = str(job["state"])
    return seen


async def test_what_the_last_release_writes_is_taken_by_the_new_schema(
    empty_database_dsn: str, database_dsn: str
) -> None:
    """The rule of a rolling restart: a step adds, and what it adds has a default or may be null."""
    async with open_database(empty_database_dsn, pool_size=1) as old, open_database(database_dsn, pool_size=1) as new:
        await old.run(apply_migrations, STEPS[:SHIPPED])
        before, after = await old.run(_columns), await new.run(_columns)
        rules_before, rules_after = await old.run(_rules), await new.run(_rules)

    for place, (kind, nullable) in before.items():
        assert place in after, f"{place} is gone"
        assert after[place][0] == kind, f"{place} changed its type"
        assert after[place][1] or not nullable, f"{place} may not be null any more"
    tables = {table for table, _ in before}
    required = [place for place, (_, optional) in after.items() if place not in before and not optional]
    assert [place for place in required if place[0] in tables] == []
    added = {name for _, name in after if not any(name == known for _, known in before)}
    tightened = [rule for table, rule in rules_after - rules_before if table in tables]
    assert [rule for rule in tightened if not any(name in rule for name in added)] == []


async def _columns(transaction: Transaction) -> dict[tuple[str, str], tuple[str, bool]]:
    """By table and name: the type, and whether an INSERT may leave it out or a row hold null."""
    return {
        (row["table_name"], row["column_name"]): (
            row["data_type"],
            row["is_nullable"] == "YES" or row["column_default"] is not None,
        )
        for row in await transaction.fetch(_COLUMNS)
    }


async def _rules(transaction: Transaction) -> set[tuple[str, str]]:
    return {(row["table_name"], row["rule"]) for row in await transaction.fetch(_CHECKS)}
