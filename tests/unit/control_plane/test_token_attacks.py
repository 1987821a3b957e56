"""Forged, stretched and misshapen tokens at every door: what attackers show, line by line.

Each test tries one line on every kind of token where it means something. GitHub's own cache token has a list of
permissions (`ac`); in ours that list is the scopes. What good tokens reach is test_token_reach.py, what ends them
test_token_ends.py.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from nimbus.control_plane.keys.ring import Purpose
from nimbus.wire.cachetokens import derive_cache_key, plan_claims, render_cache_token
from nimbus.wire.tokens import SKEW_S, Audience, SigningKey, hmac_key, new_ed25519_key
from tests.unit.control_plane.doors import (
    Doors,
    b64,
    cache_payload,
    cache_token,
    encode,
    everywhere,
    forge_cache_token,
    open_doors,
    reopened,
    sign,
    statuses,
)  # fmt: skip
from tests.unit.control_plane.plane import ADMIN_SECRET, AGENT_SECRET, open_plane

pytestmark = pytest.mark.services
AGENTS = {"agent", "lease"}  # two doors for the same tokens
RAW_KIDS = [
    "../../etc/passwd",
    "/etc/passwd",
    "' OR 1=1--",
    "k" * 4096,
    "",
    "%2e%2e/",
    "a;b",
    "*",
]  # as a header takes them
STRANGE_KIDS: list[object] = [*RAW_KIDS, "\N{GRINNING FACE}", "a\0b", "a\nb", 7, ["x"], {"a": 1}, True, 1.5]


@pytest.fixture
async def doors(database_dsn: str, redis_url: str) -> AsyncIterator[Doors]:
    async with open_plane(database_dsn, redis_url) as plane, open_doors(plane) as doors:
        yield doors


# --- the doors themselves -----------------------------------------------------------------------------------------


async def test_each_door_lets_in_whom_these_tests_would_be_were_they_honest(doors: Doors) -> None:
    let_in = await statuses(doors)

    assert let_in == everywhere(doors, 200) | {"agent": 409, "lease": 204}  # it has no such lease, and there is no work
    assert await doors.reach(cache_token()) == 200
    assert await doors.reach(forge_cache_token(cache_payload())) == 200


# --- no, blank, basic ---------------------------------------------------------------------------------------------


async def test_no_blank_or_basic_authorization_is_a_401_that_says_what_is_wanted(doors: Doors) -> None:
    shown = [{}, *({"Authorization": text} for text in ("", "Bearer", "Basic dTpw", "Token x", "bearer"))]
    answers = [await door.knock(headers) for door in doors.jwt for headers in shown]
    answers += [await door.knock({"Authorization": door.token()}) for door in doors.jwt]
    answers += [await doors.side.get("/store/org-1", headers=headers) for headers in shown]

    assert {(answer.status_code, answer.headers.get("www-authenticate")) for answer in answers} == {(401, "Bearer")}
    assert {answer.json()["error"] for answer in answers} == {"unauthorized"}


async def test_a_token_in_the_address_opens_nothing(doors: Doors) -> None:
    for door in doors.jwt:
        for name in ("token", "access_token", "authorization", "jwt"):
            assert (await door.knock({}, f"{door.path}?{name}={door.token()}")).status_code == 401
            assert (await door.knock({"Cookie": f"{name}={door.token()}"})).status_code == 401
    assert (await doors.side.get(f"/store/org-1?token={cache_token()}")).status_code == 401


async def test_two_tokens_at_once_are_none(doors: Doors) -> None:
    for door in doors.jwt:
        assert await door.show(f"{door.token()}, Bearer {door.token()}") == 401
        assert await door.show(f"{door.token()} {door.token()}") == 401


# --- algorithms ---------------------------------------------------------------------------------------------------


async def test_alg_none_is_a_401(doors: Doors) -> None:
    for door in doors.jwt:
        for alg in ("none", "None", "NONE", "", None, ["none"], [door.key.algorithm], {"alg": "none"}, 0):
            unsigned = f"{encode(door.header(alg=alg))}.{encode(door.payload())}."
            assert await door.show(unsigned) == 401
            assert await door.show(unsigned + b64(b"x")) == 401
            assert await door.show(sign(door.key, door.header(alg=alg), door.payload())) == 401


async def test_a_public_key_used_as_a_secret_is_a_401(doors: Doors) -> None:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    for door in doors.jwt:
        for purpose in Purpose:
            public = doors.plane.services.keys.current.signing(purpose).verify_key()
            assert isinstance(public.material, Ed25519PublicKey)
            for raw in (
                public.material.public_bytes(serialization.Encoding.PEM, spki),
                public.material.public_bytes(serialization.Encoding.DER, spki),
                public.material.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw),
            ):
                for kid in (public.kid, door.key.kid, None):
                    forged = sign(SigningKey("", "HS256", raw), door.header(alg="HS256", kid=kid), door.payload())
                    assert await door.show(forged) == 401


async def test_a_key_of_the_attackers_own_is_a_401_whatever_the_header_brings_along(doors: Doors) -> None:
    theirs = rsa.generate_private_key(65537, 2048)
    edwards = new_ed25519_key()
    for door in doors.jwt:
        for extra in (
            {},
            {"jku": "https://evil.test/jwks"},
            {"jwk": {"kty": "oct", "k": "AA"}},
            {"x5u": "https://x.test"},
        ):
            header = {"alg": "RS256", "kid": door.key.kid, **extra}
            signed = f"{encode(header)}.{encode(door.payload())}"
            rs256 = f"{signed}.{b64(theirs.sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"
            assert await door.show(rs256) == 401
            assert await door.show(sign(edwards, {"alg": "EdDSA", "kid": door.key.kid, **extra}, door.payload())) == 401
            assert await door.show(sign(door.key, door.header(**extra, crit=["exp"]), door.payload())) == 401


# --- key ids ------------------------------------------------------------------------------------------------------


class Untouchable:
    """A database that nobody may ask anything."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the database was asked: {name}")


_opened: list[str] | None = None


def _note_open(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


@contextmanager
def watched_files() -> Iterator[list[str]]:
    """Every file that this process opens meanwhile: client, server and all that they load."""
    global _opened  # noqa: PLW0603 - a hook that Python calls, and that can't be taken off again
    sys.addaudithook(_note_open)
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


async def test_a_strange_key_id_is_a_401_and_touches_neither_a_file_nor_the_database(doors: Doors) -> None:
    deaf = replace(doors.plane.services, database=Untouchable())  # type: ignore[arg-type]
    answers: list[int] = []

    async with reopened(deaf) as plane:
        at_side = [door for door in doors.jwt if door.http is doors.side]
        at_plane = [replace(door, http=plane.http) for door in doors.jwt if door.http is not doors.side]
        await statuses(doors)  # the key set is fetched, and all is loaded
        await at_plane[0].show("x.y.z")
        with watched_files() as opened:
            for door in (*at_plane, *at_side):
                shown = [sign(door.key, door.header(kid=kid), door.payload()) for kid in STRANGE_KIDS]
                answers += [await door.show(token) for token in shown]
            for kid in RAW_KIDS:
                answers.append(await doors.reach(forge_cache_token(cache_payload(), kid)))

    assert set(answers) == {401}
    assert len(answers) == len(STRANGE_KIDS) * len(doors.jwt) + len(RAW_KIDS)
    assert opened == []


async def test_an_unknown_key_id_is_a_401(doors: Doors) -> None:
    for door in doors.jwt:
        stranger = new_ed25519_key()
        assert await door.show(sign(stranger, {"alg": "EdDSA", "kid": stranger.kid}, door.payload())) == 401
        secret = hmac_key("w" * 40)
        assert await door.show(sign(secret, {"alg": "HS256", "kid": secret.kid}, door.payload())) == 401
        assert await door.show(sign(secret, {"alg": "HS256"}, door.payload())) == 401
    foreign = plan_claims(1, now_s=time.time(), ttl_s=60)
    assert await doors.reach(render_cache_token(derive_cache_key("w" * 40), foreign)) == 401


async def test_a_key_of_one_purpose_makes_no_token_of_another(doors: Doors) -> None:
    keys = {door.name: door.key for door in doors.jwt}
    foreign = [
        (door, name)
        for door in doors.jwt
        for name, key in keys.items()
        # the published key set does not tell the families apart; both are the control plane's, and nobody else's
        if key.kid != door.key.kid and not (door.name == "machine" and name in AGENTS)
    ]
    shown = {
        (door.name, name): await door.show(
            sign(keys[name], {"alg": keys[name].algorithm, "kid": keys[name].kid}, door.payload())
        )
        for door, name in foreign
    }

    assert set(shown.values()) == {401}, shown
    assert len(shown) == 32
    for secret in (ADMIN_SECRET, AGENT_SECRET):
        theirs = render_cache_token(derive_cache_key(secret), plan_claims(1, now_s=time.time(), ttl_s=60))
        assert await doors.reach(theirs) == 401


# --- times --------------------------------------------------------------------------------------------------------


async def test_a_token_that_expired_by_a_second_more_than_the_skew_is_a_401(doors: Doors) -> None:
    now = int(time.time())

    assert await statuses(doors, exp=now - int(SKEW_S) - 1) == everywhere(doors, 401)
    assert 401 not in (await statuses(doors, exp=now + 1)).values()
    assert await doors.reach(forge_cache_token(cache_payload(nbf=now - 99, exp=now - int(SKEW_S) - 1))) == 401


async def test_an_exp_that_is_missing_or_no_time_is_a_401(doors: Doors) -> None:
    times: list[object] = [
        None,
        "9999999999",
        math.nan,
        math.inf,
        -math.inf,
        2**63,
        10**400,
        1e300,
        -1,
        True,
        [1],
        {"a": 1},
        "",
        "1e9",
    ]
    for exp in times:
        assert await statuses(doors, exp=exp) == everywhere(doors, 401)
        assert await doors.reach(forge_cache_token(cache_payload(exp=exp))) == 401


async def test_an_exp_of_null_is_a_401(doors: Doors) -> None:
    for door in doors.jwt:
        assert await door.show(sign(door.key, door.header(), {**door.payload(), "exp": None})) == 401


async def test_a_token_whose_nbf_lies_in_the_future_is_a_401(doors: Doors) -> None:
    later = int(time.time() + SKEW_S) + 30

    assert await statuses(doors, nbf=later, exp=later + 60) == everywhere(doors, 401)
    assert await statuses(doors, iat=later, exp=later + 60) == everywhere(doors, 401)
    assert await statuses(doors, nbf="0") == everywhere(doors, 401)
    assert await doors.reach(forge_cache_token(cache_payload(nbf=later, exp=later + 60))) == 401


# --- audience, issuer, subject ------------------------------------------------------------------------------------


async def test_a_wrong_issuer_is_a_401(doors: Doors) -> None:
    iss_forms: list[object] = [None, "", "Nimbus", "nimbus ", "https://token.actions.githubusercontent.com", ["nimbus"]]
    for iss in iss_forms:
        assert await statuses(doors, iss=iss) == everywhere(doors, 401)


async def test_a_wrong_audience_is_a_401(doors: Doors) -> None:
    for door in doors.jwt:
        others: list[object] = [str(audience) for audience in Audience if audience is not door.audience]
        others += [
            None,
            "",
            [str(door.audience)],
            [*map(str, Audience)],
            str(door.audience).upper(),
            f"{door.audience} ",
        ]
        for audience in others:
            assert await door.show(door.token(aud=audience)) == 401


async def test_a_good_token_of_one_door_opens_no_other(doors: Doors) -> None:
    tokens = {door.name: door.token() for door in doors.jwt} | {"cache": cache_token()}
    for door in doors.jwt:
        for name, token in tokens.items():
            # an agent's own token may be exchanged for its next: that is what it renews itself by
            same = name == door.name or (name in AGENTS and door.name in {*AGENTS, "enrolment"})
            assert await door.show(token) in ({200, 204, 409} if same else {401}), (name, door.name)
    for name in set(tokens) - {"cache"}:
        assert await doors.reach(tokens[name]) == 401


async def test_a_subject_that_is_no_name_is_a_401(doors: Doors) -> None:
    sub_forms: list[object] = [None, "", 7, ["alice"], "a\nb", "s" * 257, "\x1b[31m", "a\u202eb", "a\0b", {"a": 1}]
    for sub in sub_forms:
        assert await statuses(doors, sub=sub) == everywhere(doors, 401)


async def test_a_subject_that_only_looks_like_an_allowed_one_is_not_allowed(database_dsn: str, redis_url: str) -> None:
    lookalikes = [
        "\u0430lice",
        "Alice",
        "alice ",
        " alice",
        "ali\u200dce",
        "alic\u0435",
        "alice,bob",
        "\uff41lice",
        "*",
    ]
    async with open_plane(database_dsn, redis_url) as plane:
        strict = replace(plane.services, access=replace(plane.services.access, allowed_subjects=frozenset({"alice"})))
        async with reopened(strict) as narrow, open_doors(narrow) as doors:
            admin = doors.jwt[0]
            seen = [await admin.show(admin.token(sub=subject)) for subject in lookalikes]
            allowed = await admin.show(admin.token())

    assert set(seen) <= {401, 403}
    assert allowed == 200


async def test_a_service_is_known_by_its_subject_and_an_admin_is_none(doors: Doors) -> None:
    internal = doors.jwt[1]
    for subject in ("alice", "service", "Service:logs", "xservice:logs", "agent:service:logs"):
        assert await internal.show(internal.token(sub=subject)) == 403


# --- ac, scopes, names that stand twice ---------------------------------------------------------------------------


async def test_a_list_of_permissions_that_is_none_is_a_401(doors: Doors) -> None:
    scopes_forms: list[object] = [
        "pull:org-1",
        '["pull:org-1"]',
        '[{"Scope":"refs/heads/main","Permission":3}]',
        [{"pull": "org-1"}],
        [["pull:org-1"]],
        [{"Scope": "pull:org-1", "Permission": "3"}],
        {"pull": "org-1"},
        3,
        "3",
        None,
        [],
        [None],
        [3],
        ["pull:org-1", "delete:org-1"],
        ["read_write:org-1"],
    ]
    for scopes in scopes_forms:
        assert await doors.reach(forge_cache_token(cache_payload(scopes=scopes))) == 401


async def test_a_role_that_is_no_word_changes_nothing(doors: Doors) -> None:
    admin = replace(doors.jwt[0], method="POST", path="/api/jobs", body={"argv": ["true"]})
    for role in (None, "", "Admin", "admin ", ["admin"], {"admin": True}, True, 1, "read,admin", "\uff41dmin"):
        assert await admin.show(admin.token(role=role)) == 403


async def test_a_name_that_stands_twice_is_a_401(doors: Doors) -> None:
    for door in doors.jwt:
        good, header = json.dumps(door.payload()), json.dumps(door.header())
        for twice in ('"sub": "other", ', '"aud": "other", ', '"exp": 1, ', '"role": "admin", "role": "read", '):
            assert await door.show(sign(door.key, header, "{" + twice + good[1:])) == 401
        assert await door.show(sign(door.key, '{"alg": "none", ' + header[1:], good)) == 401
    twice = '{"org_id": 2, ' + json.dumps(cache_payload())[1:]
    assert await doors.reach(forge_cache_token(twice)) == 401


async def test_a_token_within_a_token_is_a_401(doors: Doors) -> None:
    for door in doors.jwt:
        inner = door.token()
        for payload in (inner, json.dumps(inner), [inner], None, 7, "x"):
            assert await door.show(sign(door.key, door.header(), payload)) == 401
        assert await door.show(sign(door.key, door.header(cty="JWT"), door.payload())) == 401
        for text in (f"{inner}.{inner}", f"{inner}.x", f"v1.{inner}", inner.rpartition(".")[0], inner + "."):
            assert await door.show(text) == 401


async def test_another_spelling_of_a_good_token_is_a_401(doors: Doors) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for door in doors.jwt:
        token = door.token()
        head, _, tail = token.rpartition(".")
        last = letters[letters.index(tail[-1]) ^ 1]  # bits that no byte of the signature needs
        for other in (
            token + "=",
            token + "==",
            head + "=." + tail,
            f"{head}.{tail[:-1]}{last}",
            token.replace(".", ".=", 1),
        ):
            assert await door.show(other) == 401
    token = cache_token()
    for other in (token + "=", token + ".", token[:-1] + letters[letters.index(token[-1]) ^ 1], "v2" + token[2:]):
        assert await doors.reach(other) == 401


async def test_a_token_of_any_size_is_a_401_and_no_crash(doors: Doors) -> None:
    for door in doors.jwt:
        assert await door.show(door.token(padding="p" * 7000)) == 401
        assert await door.show(sign(door.key, door.header(), "[" * 3000)) == 401
        assert await door.show("A" * 9000) == 401
    assert await doors.reach("v1." + "A" * 3000) == 401
