"""Versions are compared by their numbers, and what is no version is told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus import __version__
from nimbus.model.errors import Refused
from nimbus.model.release import is_before, parse_release


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("0.2.0", "0.10.0"),
        ("0.9", "1"),
        ("1.0", "1.0.1"),
        ("1.0.0rc1", "1.0.0"),
        ("1.0.0.dev7", "1.0"),
        ("0.9.9", "1.0.0b2"),
    ],
)
def test_a_release_is_before_the_next_one_by_numbers_and_not_by_letters(older: str, newer: str) -> None:
    assert is_before(older, newer)
    assert not is_before(newer, older)


def test_parts_that_are_left_out_are_nought_and_a_local_suffix_changes_nothing() -> None:
    assert parse_release("1") == parse_release("1.0.0") == parse_release("1.0.0+build.5")


@pytest.mark.parametrize("odd", ["", "latest", "v1.0", "1..2", "1.2.3.4.5", "1.0-rc1", " 1.0", "1.0\n", "9" * 40])
def test_what_is_no_version_is_refused_and_before_nothing(odd: str) -> None:
    with pytest.raises(Refused, match="is no version"):
        parse_release(odd)
    assert is_before(odd, "1.0") is None
    assert is_before("1.0", odd) is None


@given(st.text(max_size=80))
def test_no_text_breaks_a_comparison(text: str) -> None:
    assert is_before(text, "1.0") in {True, False, None}


def test_our_own_version_can_be_compared() -> None:
    assert is_before(__version__, __version__) is False
