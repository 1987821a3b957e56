"""`nimbus cache` and `nimbus admin token`: what they print opens what it says, and nothing else is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from nimbus.cli.tokens import check_subject, find_org, parse_ttl, read_identity
from nimbus.model.errors import Refused
from nimbus.wire.cachetokens import CacheClaims, derive_cache_key, verify_cache_token
from nimbus.wire.tokens import Audience, Claims, hmac_key, render_token, verify_token
from tests.unit.control_plane.github_plane import open_github_plane
from tests.unit.control_plane.plane import ADMIN_SECRET, Plane, bearer, open_plane

ROOT = Path(__file__).parents[3]
CACHE_SECRET = "c" * 40


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int
    out: str
    err: str


def nimbus(*words: str, stdin: str = "", **environ: str) -> Said:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NIMBUS_")}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=clean | environ, input=stdin
    )
    return Said(done.returncode, done.stdout, done.stderr)


def admin_token(*words: str, stdin: str = "", **environ: str) -> Said:
    return nimbus("nimbus.cli.admin", "token", *words, stdin=stdin, **({"NIMBUS_JWT_SECRET": ADMIN_SECRET} | environ))


def read_admin(said: Said) -> Claims:
    assert (said.status, said.err) == (0, "")
    keys = [hmac_key(ADMIN_SECRET).verify_key()]
    return verify_token(said.out.strip(), keys, audience=Audience.ADMIN, now_s=time.time())


def read_cache(said: Said) -> CacheClaims:
    assert (said.status, said.err) == (0, "")
    keys = [derive_cache_key(CACHE_SECRET)]
    return verify_cache_token(said.out.strip(), keys, audience=Audience.CACHE, now_s=time.time())


# --- nimbus cache -------------------------------------------------------------------------------------------------


def test_the_documents_command_mints_a_cache_token_for_an_org() -> None:
    claims = read_cache(nimbus("nimbus.cli.cache", "--secret", CACHE_SECRET, "--org-id", "123", "--ttl", "3600"))

    assert [str(scope) for scope in claims.scopes] == ["pull:org-123", "push:org-123"]
    assert claims.lease is None
    assert claims.expires_at_s - claims.not_before_s == 3600


def test_a_cache_token_may_be_for_one_action_on_one_repository() -> None:
    words = ("nimbus.cli.cache", "--org-id", "7", "--repo-id", "9", "--scope", "pull")
    claims = read_cache(nimbus(*words, NIMBUS_CACHE_SHARED_SECRET=CACHE_SECRET))

    assert [str(scope) for scope in claims.scopes] == ["pull:org-7/repo-9"]


@pytest.mark.parametrize(
    "words",
    [
        ("--org-id", "7", "--secret", "super-secret"), ("--org-id", "0", "--secret", CACHE_SECRET), ("--org-id", "7"),
        ("--org-id", "7", "--secret", CACHE_SECRET, "--scope", "delete"),
        ("--org-id", "7", "--secret", CACHE_SECRET, "--ttl", "0"),
        ("--org-id", "7", "--secret", CACHE_SECRET, "--ttl", "999999999"),
    ],
)  # fmt: skip
def test_a_cache_token_that_nobody_should_have_is_not_minted(words: tuple[str, ...]) -> None:
    said = nimbus("nimbus.cli.cache", *words)
    assert (said.status, said.out) == (2, "")
    assert CACHE_SECRET not in said.err
    assert "super-secret" not in said.err


# --- nimbus admin token mint --------------------------------------------------------------------------------------


def test_a_minted_token_names_its_subject_its_role_and_an_id_and_reads_only_unless_asked() -> None:
    reader = read_admin(admin_token("mint", "--subject", "alice"))
    writer = read_admin(admin_token("mint", "--subject", "alice", "--role", "admin", "--org", "7", "--ttl", "8h"))

    assert (reader.subject, reader.extra["role"], reader.integer("org_id")) == ("alice", "read", None)
    assert (writer.extra["role"], writer.integer("org_id")) == ("admin", 7)
    assert reader.extra["jti"] != writer.extra["jti"]
    assert 8 * 3600 - 60 < writer.expires_at_s - time.time() <= 8 * 3600
    assert "nonce" not in writer.extra


def test_a_token_for_logs_reads_output_and_nothing_else() -> None:
    minted = admin_token("mint", "--subject", "dashboard", "--org", "7", "--for", "logs")
    key = hmac_key(ADMIN_SECRET).verify_key()
    claims = verify_token(minted.out.strip(), [key], audience=Audience.LOGS_READ, now_s=time.time())
    wrong = [
        admin_token("mint", "--subject", "x", "--for", "logs", *words) for words in (("--once",), ("--role", "admin"))
    ]

    assert (claims.subject, claims.integer("org_id"), len(str(claims.extra["jti"]))) == ("dashboard", 7, 36)
    assert [(reply.status, reply.out) for reply in wrong] == [(2, "")] * 2


def test_a_token_for_one_call_lives_an_hour_at_most() -> None:
    once = read_admin(admin_token("mint", "--subject", "x", "--role", "admin", "--once"))
    longer = admin_token("mint", "--subject", "x", "--once", "--ttl", "2h")

    assert len(str(once.extra["nonce"])) >= 32
    assert (longer.status, longer.out) == (2, "")


def test_a_subject_that_the_control_plane_would_refuse_gets_no_token() -> None:
    allowed = {"NIMBUS_ADMIN_ALLOWED_SUBJECTS": "alice, bob"}
    refused = admin_token("mint", "--subject", "eve", **allowed)

    assert (refused.status, refused.out) == (2, "")
    assert "NIMBUS_ADMIN_ALLOWED_SUBJECTS" in refused.err
    assert read_admin(admin_token("mint", "--subject", "bob", **allowed)).subject == "bob"


@pytest.mark.parametrize("subject", ["", "a\nb", "s" * 257, "\x1b[31m"])
def test_a_subject_that_no_service_takes_is_refused(subject: str) -> None:
    with pytest.raises(Refused):
        check_subject(subject, "")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("8h", 28800), ("30d", 2592000)])
def test_a_life_is_written_with_its_unit(text: str, seconds: int) -> None:
    assert parse_ttl(text, 366 * 86400) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5h", "1w", "h", "367d", "1h ", "\uff11h", "9" * 50])
def test_another_life_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_ttl(text, 366 * 86400)


@pytest.mark.parametrize("name", ["0", "01", "9223372036854775808"])
def test_an_org_of_no_such_number_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        find_org(name, "http://127.0.0.1:9")


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", "a.e30.c", "a.bnVsbA.c", "\N{GRINNING FACE}.e30.c", "x" * 9000])
def test_what_is_no_token_with_an_id_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        read_identity(text)


# --- against a control plane --------------------------------------------------------------------------------------


async def said_by(plane: Plane, *words: str, stdin: str = "", **environ: str) -> Said:
    def run() -> Said:
        return admin_token(*words, stdin=stdin, **({"NIMBUS_CONTROL_PLANE_URL": plane.url} | environ))

    return await trio.to_thread.run_sync(run)


@pytest.mark.services
async def test_an_org_may_be_named_by_its_login(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        await github.tell("completed", 1)
        minted = read_admin(await said_by(github.plane, "mint", "--subject", "x", "--org", "octo-org"))
        unknown = await said_by(github.plane, "mint", "--subject", "x", "--org", "nobody")
        [row] = await github.plane.sql("SELECT org_id FROM orgs WHERE login = 'octo-org'")

    assert minted.integer("org_id") == row["org_id"]
    assert (unknown.status, unknown.out) == (2, "")


@pytest.mark.services
async def test_a_revoked_token_is_refused_at_once_and_forgotten_when_it_would_have_ended(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        token = (await said_by(plane, "mint", "--subject", "alice", "--role", "admin")).out
        other = (await said_by(plane, "mint", "--subject", "alice", "--role", "admin")).out
        before = await plane.http.get("/api/jobs/recent", headers=bearer(token.strip()))
        revoked = await said_by(plane, "revoke", "-", stdin=token)
        after = await plane.http.get("/api/jobs/recent", headers=bearer(token.strip()))
        others = await plane.http.get("/api/jobs/recent", headers=bearer(other.strip()))
        by_id = await said_by(plane, "revoke", "some-id", "--json")
        kept = {row["jti"]: row for row in await plane.sql("SELECT jti, expires_at, revoked_by FROM revoked_tokens")}

    jti = str(read_identity(token)["jti"])
    assert [before.status_code, after.status_code, others.status_code] == [200, 401, 200]
    assert revoked.out == f"token {jti} is revoked: nobody takes it any more\n"
    assert kept[jti]["expires_at"].timestamp() > time.time() + 3600
    assert kept[jti]["revoked_by"] == "cli"
    assert json.loads(by_id.out) == {"jti": "some-id", "revoked": True}
    assert kept["some-id"]["expires_at"] is None


@pytest.mark.services
async def test_the_commands_own_tokens_are_for_a_subject_that_may_be_chosen(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        await said_by(plane, "revoke", "some-id", NIMBUS_ADMIN_SUBJECT="ops")
        rows = await plane.sql("SELECT revoked_by FROM revoked_tokens")

    assert [row["revoked_by"] for row in rows] == ["ops"]


@pytest.mark.services
async def test_a_token_given_as_a_word_is_not_taken_for_an_id(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        key = hmac_key(ADMIN_SECRET)
        token = render_token(key, subject="x", audience=Audience.ADMIN, now_s=time.time(), ttl_s=60)
        said = await said_by(plane, "revoke", token)

    assert said.status == 2
    assert "standard input" in said.err
    assert token not in said.err
