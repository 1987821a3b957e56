"""NIMBUS_POOL: what is asked for, and what is refused with a word on what is wrong."""

from __future__ import annotations

import pytest

from nimbus.host_agent.pool.sizes import PoolSize, parse_pool
from nimbus.model.errors import Refused
from nimbus.model.vm import Shape


def test_nothing_asked_for_is_nothing() -> None:
    assert parse_pool("") == parse_pool(" ; ") == ()


def test_shapes_and_numbers_are_read() -> None:
    asked = parse_pool("1x256x2048 prespawned=2 warm=1; 4x8192 built=1")
    assert asked == (
        PoolSize(Shape(1, 256, 2048), {"prespawned": 2, "warm": 1}),
        PoolSize(Shape(4, 8192), {"built": 1}),
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("1x256", "no shape with numbers"),
        ("small warm=1", "no shape with numbers"),
        ("1x256 hot=1", "'hot=1'"),
        ("1x256 warm=1 warm=2", "'warm=2'"),
        ("1x256 warm=-1", "'warm=-1'"),
        ("1x256 warm=9999", "'warm=9999'"),
        ("1x256 warm=1; 1x256x2048 built=1", "twice"),
        ("0x256 warm=1", "cpus=0"),
        ("1x8 warm=1", "memory of 8 MiB"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(Refused, match="NIMBUS_POOL") as told:
        parse_pool(text)
    assert word in str(told.value)
