"""One engine for the whole session: each test has a database of its own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nimbus.logging_pipeline.engine.child import Endpoint
from tests.unit.logging_pipeline.rig import run_engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with run_engine(tmp_path_factory.mktemp("engine") / "store") as endpoint:
        yield endpoint
