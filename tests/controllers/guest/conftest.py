"""These tests judge limits by a kernel that has every cgroup controller, and take that kernel for themselves.

One of them takes memory from all VMs of the host at once, so a developer's machine is no place for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nimbus.host.cgroup import list_cgroups, remove_cgroup
from nimbus.model.ids import new_vm_id
from tests.controllers.guest.leaf import LIMIT_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("NIMBUS_TEST_CONTROLLERS"):
        return
    elsewhere = pytest.mark.skip(reason="`make test-controllers` runs it, in a guest with every cgroup controller")
    for item in items:
        if item.path.is_relative_to(os.path.dirname(__file__)):
            item.add_marker(elsewhere)


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a VM that is none but for its cgroup."""
    name = f"nbfff-{new_vm_id()}"
    yield name
    remove_cgroup(name, LIMIT_S)
    assert list_cgroups(name) == ()
