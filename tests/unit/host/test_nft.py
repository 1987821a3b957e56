"""What libnftables says of a batch, as one line for people."""

from __future__ import annotations

import pytest

from nimbus.host.nft import parse_error


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ("Error: no such thing\nadd table a;add b c\n                ^\n", "Error: no such thing at 'b'"),
        ("Error: bad\nadd table a\n    ^^^^^\n\nError: worse\n", "Error: bad at 'table'"),
        ("Error: out of memory\n", "Error: out of memory"),
        ("Error: cut\nadd table a\n", "Error: cut"),
        ("", "no cause was given"),
    ],
)
def test_the_first_fault_is_told_with_the_words_that_it_means(told: str, line: str) -> None:
    assert parse_error(told) == line
