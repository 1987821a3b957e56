"""A bench with the real programs; whatever a test leaves on the host fails it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.firecracker.bench import Bench, make_bench, require_programs
from tests.hosts import is_root
from tests.oracle import open_territory, watch_leaks


@pytest.fixture
def bench() -> Iterator[Bench]:
    if not is_root():
        pytest.skip("needs root: namespaces, cgroups and the jailer's own work")
    programs = require_programs()
    with open_territory() as territory:
        made = make_bench(territory, programs)
        with watch_leaks(territory):
            yield made
