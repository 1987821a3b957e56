"""A bench with the real programs, and one with the fakes; whatever a test leaves on the host fails it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.install import install_fakes
from tests.firecracker.bench import REAL, Bench, Programs, make_bench, require_programs
from tests.hosts import is_root
from tests.oracle import open_territory, watch_leaks


@pytest.fixture(params=["fake", REAL])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if not is_root():
        pytest.skip("needs root: namespaces, cgroups and the jailer's own work")
    programs = require_programs() if request.param == "real" else None
    with open_territory() as territory:
        if programs is None:
            fakes = install_fakes(territory.state_root / "fakes")
            programs = Programs(fakes.firecracker, fakes.jailer)
        made = make_bench(territory, programs)
        with watch_leaks(territory):
            yield made
