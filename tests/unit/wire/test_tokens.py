"""Tokens against an attacker: what is not exactly right is Unauthorized, and no key id reaches a file or a query."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import Refused, Unauthorized
from nimbus.wire.tokens import (
    MAX_TOKEN_CHARS,
    SKEW_S,
    Audience,
    SigningKey,
    UnknownKey,
    hmac_key,
    load_ed25519_key,
    new_ed25519_key,
    parse_bearer,
    parse_jwks,
    parse_machine_claims,
    render_jwks,
    render_private_pem,
    render_token,
    verify_token,
)

NOW = 1_800_000_000.0
SECRET = "s" * 32
SHARED = hmac_key(SECRET)
PRIVATE = new_ed25519_key()
BOTH = (SHARED.verify_key(), PRIVATE.verify_key())


def b64(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def hs256(header: object, payload: object, secret: bytes = SECRET.encode()) -> str:
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def good_payload(**changes: object) -> dict[str, object]:
    payload = {"iss": "nimbus", "sub": "x", "aud": "nimbus-admin", "exp": int(NOW) + 60, "iat": int(NOW)} | changes
    return {name: value for name, value in payload.items() if value is not None}


def check(token: str, *, now_s: float = NOW, audience: Audience = Audience.ADMIN) -> None:
    verify_token(token, BOTH, audience=audience, now_s=now_s)


@pytest.mark.parametrize("key", [SHARED, PRIVATE])
def test_a_token_of_ours_is_believed_for_its_audience_only(key: SigningKey) -> None:
    token = render_token(key, subject="ann", audience=Audience.ADMIN, now_s=NOW, ttl_s=60, claims={"org_id": 7})

    claims = verify_token(token, BOTH, audience=Audience.ADMIN, now_s=NOW)

    assert (claims.subject, claims.integer("org_id"), claims.integer("repo_id")) == ("ann", 7, None)
    for other in set(Audience) - {Audience.ADMIN}:
        with pytest.raises(Unauthorized):
            check(token, audience=other)


def test_the_hand_made_token_of_these_tests_would_be_believed_were_it_right() -> None:
    check(hs256({"alg": "HS256"}, good_payload()))


def test_a_token_without_a_signature_is_refused() -> None:
    for algorithm in ("none", "None", "NONE", ""):
        unsigned = f"{b64({'alg': algorithm})}.{b64(good_payload())}."
        with pytest.raises(Unauthorized):
            check(unsigned)
        with pytest.raises(Unauthorized):
            check(unsigned + "AAAA")


def test_a_public_key_is_no_shared_secret() -> None:
    public = PRIVATE.verify_key().material
    assert isinstance(public, Ed25519PublicKey)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    for material in (
        public.public_bytes(serialization.Encoding.PEM, spki),
        public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw),
    ):
        with pytest.raises(Unauthorized):
            check(hs256({"alg": "HS256", "kid": PRIVATE.kid}, good_payload(), material))


@pytest.mark.parametrize("algorithm", ["HS384", "HS512", "RS256", "ES256", "EdDSA", "hs256", 1, None, ["HS256"]])
def test_the_algorithm_is_the_keys_and_never_the_tokens(algorithm: object) -> None:
    with pytest.raises(Unauthorized):
        check(hs256({"alg": algorithm}, good_payload()))


@pytest.mark.parametrize(
    "kid", ["../../etc/passwd", "' OR 1=1--", "k" * 4096, "\N{GRINNING FACE}", "", "a\nb", 7, ["x"], {"a": 1}, True]
)
def test_a_strange_key_id_is_refused(kid: object) -> None:
    with pytest.raises(Unauthorized):
        check(hs256({"alg": "HS256", "kid": kid}, good_payload()))


def test_an_unknown_key_id_says_so_because_the_key_set_may_be_old() -> None:
    with pytest.raises(UnknownKey):
        check(render_token(new_ed25519_key(), subject="x", audience=Audience.ADMIN, now_s=NOW, ttl_s=60))


@pytest.mark.parametrize("name", ["crit", "jku", "jwk", "x5u", "x5c", "b64", "zip"])
def test_a_header_that_brings_its_own_key_or_rules_is_refused(name: str) -> None:
    with pytest.raises(Unauthorized):
        check(hs256({"alg": "HS256", name: "x"}, good_payload()))


@pytest.mark.parametrize(
    "exp", [None, "9999999999", float(NOW) + 60.5, math.nan, math.inf, 2**63, 2**53, -1, True, [1], {"a": 1}]
)
def test_an_expiry_that_is_no_time_is_refused(exp: object) -> None:
    with pytest.raises(Unauthorized):
        check(hs256({"alg": "HS256"}, good_payload(exp=exp)))


def test_expiry_is_exact_up_to_the_skew() -> None:
    token = hs256({"alg": "HS256"}, good_payload(exp=int(NOW)))
    check(token, now_s=NOW + SKEW_S - 1)
    with pytest.raises(Unauthorized):
        check(token, now_s=NOW + SKEW_S)


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_from_the_future_is_refused(name: str) -> None:
    check(hs256({"alg": "HS256"}, good_payload(**{name: int(NOW + SKEW_S)})))
    with pytest.raises(Unauthorized):
        check(hs256({"alg": "HS256"}, good_payload(**{name: int(NOW + SKEW_S) + 1})))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": None}, {"iss": "nimbus "}, {"iss": ["nimbus"]}, {"aud": None}, {"aud": ["nimbus-admin"]},
        {"aud": "nimbus-logs"}, {"sub": None}, {"sub": ""}, {"sub": 7}, {"sub": "a\nb"}, {"sub": "s" * 257},
    ],
)  # fmt: skip
def test_wrong_issuer_audience_or_subject_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Unauthorized):
        check(hs256({"alg": "HS256"}, good_payload(**changes)))


@pytest.mark.parametrize("value", ["7", 7.0, True, -1, 2**63, [7], {"org": 7}])
def test_an_org_that_is_no_number_is_refused(value: object) -> None:
    claims = verify_token(hs256({"alg": "HS256"}, good_payload(org_id=value)), BOTH, audience=Audience.ADMIN, now_s=NOW)
    with pytest.raises(Unauthorized):
        claims.integer("org_id")


def test_a_changed_byte_anywhere_is_refused() -> None:
    token = render_token(PRIVATE, subject="x", audience=Audience.ADMIN, now_s=NOW, ttl_s=60)
    for place in range(0, len(token) - 1, 3):
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(Unauthorized):
            check(token[:place] + other + token[place + 1 :])


@given(st.text(max_size=200) | st.lists(st.text(alphabet="ab-_=", max_size=20), min_size=3, max_size=3).map(".".join))
def test_any_other_text_is_refused_and_nothing_else_is_raised(token: str) -> None:
    with pytest.raises(Unauthorized):
        check(token)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists))
def test_any_payload_with_a_right_signature_is_refused_quietly(payload: object) -> None:
    with pytest.raises(Unauthorized):
        check(hs256({"alg": "HS256"}, payload))


def test_deep_nesting_and_great_length_are_refused() -> None:
    for token in (hs256(b"[" * 4000, b"{}"), "a" * MAX_TOKEN_CHARS + ".b.c", SECRET):
        with pytest.raises(Unauthorized):
            check(token)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "token abc", "bearer\tabc"])
def test_a_header_without_a_bearer_token_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthorized):
        parse_bearer(header)


def test_a_short_secret_is_no_key() -> None:
    with pytest.raises(Refused, match="32 bytes"):
        hmac_key("s" * 31)


def test_two_secrets_have_two_ids_that_hold_nothing_of_them() -> None:
    ids = [hmac_key(secret).kid for secret in ("s" * 32, "s" * 33, "t" * 32)]

    assert len(set(ids)) == 3
    assert ids == [hmac_key(secret).kid for secret in ("s" * 32, "s" * 33, "t" * 32)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{16}", kid) for kid in ids)


def test_a_token_without_a_key_id_is_good_with_whichever_secret_signed_it() -> None:
    keys = [hmac_key(letter * 32).verify_key() for letter in "abc"]
    for letter in "abc":
        token = hs256({"alg": "HS256"}, good_payload(), (letter * 32).encode())
        assert verify_token(token, keys, audience=Audience.ADMIN, now_s=NOW).subject == "x"
    with pytest.raises(Unauthorized):
        verify_token(hs256({"alg": "HS256"}, good_payload(), b"d" * 32), keys, audience=Audience.ADMIN, now_s=NOW)


def test_a_token_that_names_a_key_is_tried_with_no_other() -> None:
    keys = [hmac_key("a" * 32).verify_key(), hmac_key("b" * 32).verify_key()]
    token = hs256({"alg": "HS256", "kid": keys[0].kid}, good_payload(), b"b" * 32)
    with pytest.raises(Unauthorized):
        verify_token(token, keys, audience=Audience.ADMIN, now_s=NOW)


def test_a_token_without_a_key_id_is_never_tried_with_a_public_key() -> None:
    token = hs256({"alg": "EdDSA"}, good_payload())
    for keys in (BOTH, BOTH[1:]):
        with pytest.raises(Unauthorized):
            verify_token(token, keys, audience=Audience.ADMIN, now_s=NOW)


def test_keys_survive_their_written_forms() -> None:
    again = load_ed25519_key(render_private_pem(PRIVATE))
    published = json.dumps(render_jwks([again.verify_key()])).encode()
    token = render_token(PRIVATE, subject="x", audience=Audience.LOGS, now_s=NOW, ttl_s=60)

    assert again.kid == PRIVATE.kid
    assert verify_token(token, parse_jwks(published), audience=Audience.LOGS, now_s=NOW).subject == "x"
    assert b'"d"' not in published


def test_a_shared_secret_never_becomes_part_of_a_key_set() -> None:
    with pytest.raises(Refused):
        render_jwks([SHARED.verify_key()])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"keys": 7}', b'{"keys": []}', b'{"keys": [7]}', b"\xff", b"[" * 9000,
        b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "AAAA"}]}',
        b'{"keys": [{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]}',
    ],
)  # fmt: skip
def test_a_key_set_that_cannot_be_used_is_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        parse_jwks(body)


def test_secrets_are_not_shown_by_their_holders() -> None:
    assert SECRET not in repr(SHARED)
    assert SECRET not in repr(SHARED.verify_key())


@pytest.mark.parametrize("missing", ["org_id", "machine_id", "fence", "agent_id"])
def test_a_machine_token_names_the_whole_machine(missing: str) -> None:
    whole: dict[str, object] = {"org_id": 1, "machine_id": 2, "fence": 3, "agent_id": "host-1"}
    parts = {name: value for name, value in whole.items() if name != missing}
    token = render_token(PRIVATE, subject="m", audience=Audience.LOGS, now_s=NOW, ttl_s=60, claims=parts)
    claims = verify_token(token, BOTH, audience=Audience.LOGS, now_s=NOW)
    with pytest.raises(Unauthorized):
        parse_machine_claims(claims)


def sign(header: str, payload: str) -> str:
    """A token of these very texts, rightly signed with the shared secret."""
    signed = f"{b64(header.encode())}.{b64(payload.encode())}"
    return f"{signed}.{b64(hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest())}"


def test_a_name_that_stands_twice_in_a_token_is_refused_because_two_readers_may_read_two_tokens() -> None:
    good = json.dumps(good_payload(org_id=7))
    check(sign('{"alg": "HS256"}', good))
    for header in ('{"alg": "none", "alg": "HS256"}', '{"alg": "HS256", "alg": "HS256"}'):
        with pytest.raises(Unauthorized):
            check(sign(header, good))
    for twice in ('"org_id": 8, ', '"aud": "nimbus-logs", ', '"exp": 1, '):
        with pytest.raises(Unauthorized):
            check(sign('{"alg": "HS256"}', "{" + twice + good[1:]))


@pytest.mark.parametrize("key", [SHARED, PRIVATE])
def test_a_token_has_one_spelling(key: SigningKey) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = render_token(key, subject="x", audience=Audience.ADMIN, now_s=NOW, ttl_s=60)
    check(token)
    # the last letter of a signature holds bits that no byte needs: with any other of them it decodes to the same bytes
    twin = token[:-1] + letters[letters.index(token[-1]) ^ 1]
    assert base64.urlsafe_b64decode(twin.rpartition(".")[2] + "==") == base64.urlsafe_b64decode(
        token.rpartition(".")[2] + "=="
    )
    for other in (twin, token + "=", token + "==", token.replace(".", "=."), token + "\n", token.replace(".", ". ")):
        with pytest.raises(Unauthorized):
            check(other)


def test_a_token_within_a_token_is_no_token() -> None:
    inner = render_token(SHARED, subject="x", audience=Audience.ADMIN, now_s=NOW, ttl_s=60)
    with pytest.raises(Unauthorized):
        check(hs256({"alg": "HS256", "cty": "JWT"}, good_payload()))
    for payload in (inner, json.dumps(inner), json.dumps([inner]), "null", "[]", "7"):
        with pytest.raises(Unauthorized):
            check(sign('{"alg": "HS256"}', payload))
