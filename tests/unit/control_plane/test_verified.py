"""A token that was verified is known for a while: until it expires, its key ends, or others need the place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nimbus.control_plane.hosts.verified import VerifiedTokens
from nimbus.wire.tokens import Audience, Claims, VerifyKey, new_ed25519_key

ONE, TWO = (new_ed25519_key().verify_key() for _ in range(2))
CLAIMS = Claims("agent-1", Audience.AGENT, expires_at_s=100, extra={})


@pytest.fixture
def tokens() -> VerifiedTokens:
    known = VerifiedTokens(most=3)
    assert known.find("token", (ONE, TWO), 50.0) is None
    known.keep("token", CLAIMS)
    return known


def test_a_token_that_was_verified_is_known_and_no_other(tokens: VerifiedTokens) -> None:
    assert tokens.find("token", (TWO, ONE), 99.9) == "agent-1"
    assert tokens.find("tokem", (ONE, TWO), 50.0) is None


def test_it_is_verified_anew_from_the_moment_it_expires(tokens: VerifiedTokens) -> None:
    assert tokens.find("token", (ONE, TWO), 100.0) is None


@pytest.mark.parametrize("keys", [(ONE,), (ONE, TWO, new_ed25519_key().verify_key()), ()])
def test_all_are_verified_anew_once_the_keys_have_changed(tokens: VerifiedTokens, keys: tuple[VerifyKey, ...]) -> None:
    assert tokens.find("token", keys, 50.0) is None
    assert tokens.find("token", (ONE, TWO), 50.0) is None


def test_the_oldest_makes_room(tokens: VerifiedTokens) -> None:
    for number in range(3):
        tokens.keep(f"more-{number}", replace(CLAIMS, subject=f"agent-{number}"))
    assert len(tokens) == 3
    assert tokens.find("token", (ONE, TWO), 50.0) is None
    assert tokens.find("more-2", (ONE, TWO), 50.0) == "agent-2"


def test_no_token_is_kept_as_it_came(tokens: VerifiedTokens) -> None:
    assert "token" not in repr(vars(tokens))
