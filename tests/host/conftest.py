"""A network, a guest behind it and a world beyond the host, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nimbus.model.vm import NetPlan
from tests.host.stand_in import Stack, World, acquired, open_guest, open_world, random_plan, remains


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


@pytest.fixture
def plan() -> Iterator[NetPlan]:
    with acquired(random_plan()) as plan:
        yield plan
    assert remains(plan) == []


@pytest.fixture
def guest(plan: NetPlan) -> Iterator[Stack]:
    with open_guest(plan) as stack:
        yield stack
