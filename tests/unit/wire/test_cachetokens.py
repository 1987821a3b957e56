"""Cache tokens against an attacker: any byte that is not ours is refused, in the same words."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nimbus.model.errors import Forbidden, Refused, Unauthorized
from nimbus.model.scope import Action, Scope, parse_scope
from nimbus.wire.cachetokens import (
    MAX_LIFE_S,
    MAX_SCOPES,
    MAX_TOKEN_CHARS,
    BoundLease,
    CacheClaims,
    CacheKey,
    derive_cache_key,
    plan_claims,
    render_cache_token,
    verify_cache_token,
)
from nimbus.wire.tokens import SKEW_S, Audience, hmac_key, render_token

NOW = 1_800_000_000.0
SECRET = "c" * 32
KEY = derive_cache_key(SECRET)
CLAIMS = plan_claims(7, now_s=NOW, ttl_s=60, lease=BoundLease(5, 2))
TOKEN = render_cache_token(KEY, CLAIMS)


def check(token: str, *keys: CacheKey, now_s: float = NOW, audience: Audience = Audience.CACHE) -> CacheClaims:
    return verify_cache_token(token, keys or (KEY,), audience=audience, now_s=now_s)


def refuse(token: str, *keys: CacheKey, now_s: float = NOW, audience: Audience = Audience.CACHE) -> str:
    with pytest.raises(Unauthorized) as caught:
        check(token, *keys, now_s=now_s, audience=audience)
    return str(caught.value)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forge(payload: object, *, key: CacheKey = KEY, prefix: str = "v1") -> str:
    """A token whose MAC is right, whatever it says: what only a holder of the key can make."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = f"{prefix}.{key.kid}.{b64(raw)}"
    return f"{signed}.{b64(hmac.new(key.material, signed.encode(), hashlib.sha256).digest())}"


def payload(**changes: object) -> dict[str, object]:
    said = {
        "scopes": ["pull:org-7"], "org_id": 7, "machine_id": 5, "fence": 2,
        "aud": ["nimbus-cache"], "nbf": int(NOW), "exp": int(NOW) + 60,
    }  # fmt: skip
    return {name: value for name, value in (said | changes).items() if value is not None}


# --- what is right ------------------------------------------------------------------------------------------------


def test_a_token_of_ours_says_to_both_stores_what_it_was_made_with() -> None:
    assert check(TOKEN) == CLAIMS
    assert check(TOKEN, audience=Audience.REGISTRY) == CLAIMS
    assert [str(scope) for scope in CLAIMS.scopes] == ["pull:org-7", "push:org-7"]


def test_the_hand_made_token_of_these_tests_would_be_believed_were_it_right() -> None:
    assert check(forge(payload())).lease == BoundLease(5, 2)


def test_an_operators_token_is_bound_to_no_lease() -> None:
    claims = plan_claims(7, now_s=NOW, ttl_s=60, actions=[Action.PULL])
    assert check(render_cache_token(KEY, claims)).lease is None


@given(
    org_id=st.integers(1, 2**63 - 1),
    ttl_s=st.integers(1, MAX_LIFE_S),
    lease=st.none() | st.builds(BoundLease, st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1)),
    actions=st.sets(st.sampled_from(Action), min_size=1),
)
def test_whatever_is_minted_is_read_again(
    org_id: int, ttl_s: int, lease: BoundLease | None, actions: set[Action]
) -> None:
    claims = plan_claims(org_id, now_s=NOW, ttl_s=ttl_s, actions=actions, lease=lease)
    assert check(render_cache_token(KEY, claims)) == claims


def test_a_token_reaches_what_its_scopes_name_and_is_forbidden_the_rest() -> None:
    claims = check(forge(payload(scopes=["pull:org-7/repo-3", "push:org-7"])))
    claims.require(parse_scope("pull:org-7/repo-3"))
    claims.require(parse_scope("push:org-7/repo-9"))
    for wanted in ("pull:org-7", "pull:org-7/repo-33", "pull:org-71", "push:org-70", "push:org-1"):
        with pytest.raises(Forbidden):
            claims.require(parse_scope(wanted))


def test_a_key_does_not_show_itself_when_printed() -> None:
    assert KEY.material.hex() not in repr(KEY)
    assert repr(KEY.material) not in repr(KEY)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_the_previous_and_the_next_secrets_tokens_are_read_and_a_dropped_ones_not() -> None:
    previous, following = derive_cache_key("p" * 32), derive_cache_key("n" * 32)
    ring = (KEY, following, previous)
    for key in ring:
        assert check(render_cache_token(key, CLAIMS), *ring) == CLAIMS
    refuse(render_cache_token(previous, CLAIMS), KEY, following)


def test_the_key_id_says_nothing_of_the_secret_and_is_not_the_mac_key() -> None:
    assert len(KEY.kid) == 16
    assert KEY.kid not in b64(KEY.material)
    assert b64(hashlib.sha256(SECRET.encode()).digest())[:16] != KEY.kid


def test_the_bare_secret_signs_nothing() -> None:
    refuse(forge(payload(), key=CacheKey(KEY.kid, SECRET.encode())))


def test_an_unknown_key_is_refused_in_the_words_for_a_wrong_mac() -> None:
    unknown = refuse(render_cache_token(derive_cache_key("x" * 32), CLAIMS))
    assert unknown == refuse(TOKEN[:-1] + ("A" if TOKEN[-1] != "A" else "E"))


def test_a_mac_made_with_nobodys_key_opens_nothing() -> None:
    for kid in ("A" * 16, derive_cache_key("x" * 32).kid):
        refuse(forge(payload(), key=CacheKey(kid, bytes(32))))


def test_a_short_secret_makes_no_key() -> None:
    with pytest.raises(Refused):
        derive_cache_key("c" * 31)


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_expiry_and_begin_are_exact_up_to_the_skew() -> None:
    check(TOKEN, now_s=NOW + 60 + SKEW_S - 1)
    refuse(TOKEN, now_s=NOW + 60 + SKEW_S)
    check(TOKEN, now_s=NOW - SKEW_S)
    refuse(TOKEN, now_s=NOW - SKEW_S - 1)


def test_a_token_opens_the_stores_that_it_names_and_no_other_service() -> None:
    cache_only = forge(payload())
    check(cache_only)
    refuse(cache_only, audience=Audience.REGISTRY)
    for other in set(Audience) - {Audience.CACHE, Audience.REGISTRY}:
        refuse(TOKEN, audience=other)


@pytest.mark.parametrize(
    "changes",
    [
        {"scopes": None}, {"scopes": []}, {"scopes": "pull:org-7"}, {"scopes": [{"pull": "org-7"}]},
        {"scopes": ["pull:org-7", 3]}, {"scopes": ["pull:org-7", "pull:org-8"]}, {"scopes": ["pull:org-8"]},
        {"scopes": ["pull:org-7", "pull:org-7"]}, {"scopes": ["delete:org-7"]}, {"scopes": ["pull:org-07"]},
        {"scopes": ["pull:ORG-7"]}, {"scopes": ["pull:org-\uff17"]}, {"scopes": ["pull:org-7/../org-8"]},
        {"scopes": [f"pull:org-7/repo-{n}" for n in range(1, MAX_SCOPES + 2)]},
        {"org_id": None}, {"org_id": "7"}, {"org_id": 7.0}, {"org_id": True}, {"org_id": -7}, {"org_id": 8},
        {"org_id": 0}, {"org_id": 2**63}, {"org_id": [7]},
        {"aud": None}, {"aud": "nimbus-cache"}, {"aud": []}, {"aud": ["nimbus-admin"]}, {"aud": [["nimbus-cache"]]},
        {"aud": ["nimbus-cache", "nimbus-cache"]},
        {"exp": None}, {"exp": "9999999999"}, {"exp": float(NOW) + 60.5}, {"exp": float("nan")}, {"exp": 2**63},
        {"exp": -1}, {"exp": True}, {"exp": int(NOW)}, {"exp": int(NOW) + MAX_LIFE_S + 1}, {"exp": 10**400},
        {"nbf": None}, {"nbf": "0"}, {"nbf": float("inf")}, {"nbf": -1}, {"nbf": int(NOW) + 60},
        {"machine_id": None}, {"fence": None}, {"machine_id": 0}, {"fence": 0}, {"fence": "2"}, {"machine_id": [5]},
        {"fence": 2**63}, {"role": "admin"}, {"iss": "nimbus"},
    ],
)  # fmt: skip
def test_a_payload_that_is_not_exactly_ours_is_refused_though_its_mac_is_right(changes: dict[str, object]) -> None:
    refuse(forge(payload(**changes)))


@pytest.mark.parametrize(
    "raw",
    [
        b"x", b"null", b"[]", b"7", b'"x"', b"{}", b"\xff\xfe", b"[" * 1000, b'{"a":' * 200,
        json.dumps(payload()).replace('"org_id": 7', '"org_id": 8, "org_id": 7').encode(),
        json.dumps(payload()).encode() + b" x",
    ],
)  # fmt: skip
def test_a_payload_that_cannot_be_read_in_one_way_is_refused_though_its_mac_is_right(raw: bytes) -> None:
    refuse(forge(raw))


def test_one_token_has_one_spelling() -> None:
    version, kid, body, mac = TOKEN.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".index(mac[-1])
    # the last of 43 letters holds two bits that no byte needs
    twins = [
        mac[:-1] + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last ^ bits] for bits in (1, 2, 3)
    ]
    for twin in twins:
        refuse(f"{version}.{kid}.{body}.{twin}")
    for spelling in (
        TOKEN + "=", TOKEN + "\n", " " + TOKEN, TOKEN + ".", "." + TOKEN, TOKEN.replace("v1", "V1"),
        f"{version}.{kid}.{body}=.{mac}", f"{version}.{kid}.{body}.{mac}=", f"{version}.{kid}..{mac}",
        f"{version}.{kid}.{body[:-1]}+.{mac}", f"{version}.{kid}.{body}.{mac}.{mac}", f"{version}.{body}.{mac}",
    ):  # fmt: skip
        refuse(spelling)


def test_the_mac_covers_version_key_id_and_payload() -> None:
    version, kid, body, mac = TOKEN.split(".")
    other = forge(payload(org_id=8, scopes=["pull:org-8"])).split(".")
    refuse(f"{version}.{kid}.{other[2]}.{mac}")
    refuse(f"{version}.{kid}.{body}.{other[3]}")
    refuse(forge(payload(), prefix="v2"))
    refuse(TOKEN.replace("v1", "v2"))


@pytest.mark.parametrize("kid", ["../../etc/passwd", "' OR 1=1--", "k" * 4096, "\N{GRINNING FACE}" * 16, "", "a\nb"])
def test_a_strange_key_id_is_refused(kid: str) -> None:
    refuse(forge(payload(), key=CacheKey(kid, KEY.material)), CacheKey(kid, KEY.material))


def test_other_kinds_of_token_and_the_secret_itself_are_refused() -> None:
    jwt = render_token(hmac_key(SECRET), subject="x", audience=Audience.CACHE, now_s=NOW, ttl_s=60)
    for text in ("", SECRET, jwt, f"v1.{KEY.kid}.{jwt}", "v1.." + jwt, TOKEN * 8, "A" * (MAX_TOKEN_CHARS + 1)):
        refuse(text)


@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TOKEN) - 1))
    flipped = chr(ord(TOKEN[at]) ^ (1 << data.draw(st.integers(0, 7))))
    refuse(TOKEN[:at] + flipped + TOKEN[at + 1 :])


@given(st.text() | st.text("v1.AZaz09-_=", max_size=300))
@example("v1." + "A" * 16 + "." + "A" * 1900 + "." + "A" * 43)
@example("v1." + "A" * 16 + ".A." + "A" * 43)
def test_whatever_is_sent_is_refused_and_never_crashes(text: str) -> None:
    refuse(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(sorted(payload())), inner),
        max_leaves=8,
    )
)
def test_whatever_a_holder_of_the_key_signs_is_read_or_refused_and_never_crashes(value: object) -> None:
    refuse(forge(value))


def test_what_nobody_would_take_is_not_minted() -> None:
    for wrong in (
        replace(CLAIMS, org_id=8),
        replace(CLAIMS, scopes=()),
        replace(CLAIMS, audiences=(Audience.ADMIN,)),
        replace(CLAIMS, expires_at_s=CLAIMS.not_before_s),
        replace(CLAIMS, expires_at_s=CLAIMS.not_before_s + MAX_LIFE_S + 1),
        replace(CLAIMS, lease=BoundLease(0, 1)),
        replace(CLAIMS, scopes=tuple(Scope(Action.PULL, 7, n) for n in range(1, MAX_SCOPES + 2))),
    ):
        with pytest.raises(Refused):
            render_cache_token(KEY, wrong)
