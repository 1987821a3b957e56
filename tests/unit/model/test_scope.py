"""A scope reaches what it names, letter for letter, and nothing beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import Refused
from nimbus.model.scope import MAX_ID, Action, Scope, parse_scope

IDS = st.integers(1, MAX_ID)
SCOPES = st.builds(Scope, st.sampled_from(Action), IDS, st.none() | IDS)


@given(SCOPES)
def test_a_scope_has_one_spelling(scope: Scope) -> None:
    assert parse_scope(str(scope)) == scope


@pytest.mark.parametrize(
    "text",
    [
        "", "pull", "pull:", "pull:org-", "pull:org-0", "pull:org-01", "pull:ORG-1", "PULL:org-1", "pull:org-1 ",
        " pull:org-1", "pull:org-1\n", "pull:org-+1", "pull:org--1", "pull:org-1.0", "pull:org-*", "pull:*", "*",
        "pull:org-\uff11", "pull:org-\u0661", "pull:org-1/", "pull:org-1/../org-2", "pull:org-1%2f..%2forg-2",
        "pull:org-1/repo-", "pull:org-1/repo-0", "pull:org-1/repo-1/x", "pull:org-1/repo-\uff11", "pull:repo-1",
        "delete:org-1", "admin:org-1", "read_write:org-1", "pull,push:org-1", "pull:org-9223372036854775808",
        "pull:org-1/repo-9999999999999999999", "pull:org-1:repo-2", "pull:org-1,push:org-1", "pull:org-1\0",
    ],
)  # fmt: skip
def test_another_spelling_is_no_scope(text: str) -> None:
    with pytest.raises(Refused):
        parse_scope(text)


@given(SCOPES, SCOPES)
def test_a_scope_covers_its_own_action_org_and_repository_and_nothing_else(held: Scope, wanted: Scope) -> None:
    expected = held == wanted or held == Scope(wanted.action, wanted.org_id)
    assert held.covers(wanted) is expected


def test_org_1_does_not_reach_org_12_nor_org_12_org_1() -> None:
    one, twelve = parse_scope("pull:org-1"), parse_scope("pull:org-12")
    assert not one.covers(twelve)
    assert not twelve.covers(one)


def test_push_does_not_include_pull_nor_pull_push() -> None:
    pull, push = parse_scope("pull:org-1"), parse_scope("push:org-1")
    assert not push.covers(pull)
    assert not pull.covers(push)


def test_a_repositorys_scope_does_not_reach_the_org_nor_another_repository() -> None:
    held = parse_scope("pull:org-1/repo-2")
    assert held.covers(parse_scope("pull:org-1/repo-2"))
    assert not held.covers(parse_scope("pull:org-1"))
    assert not held.covers(parse_scope("pull:org-1/repo-22"))
    assert not held.covers(parse_scope("pull:org-2/repo-2"))
