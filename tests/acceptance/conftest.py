"""One stack for all acceptance tests that don't end it: it takes ten seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.gate import Gate, running_gate
from tests.acceptance.stack import Github, Stack, find_leaks, open_github, prepare_state, running_stack
from tests.hosts import is_root, require_guest


@pytest.fixture(scope="session")
def gate() -> Iterator[Gate]:
    """A door that every guest of the shared stack can knock at. A test that shuts it opens it again."""
    with running_gate() as door:
        yield door


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Iterator[Stack]:
    """`nimbus up --sim`; at its end the stack exits with 0, nothing runs, and the host is as it was."""
    if not is_root():
        pytest.skip("needs root: namespaces, cgroups and mounts")
    require_guest()
    state = prepare_state(tmp_path_factory.mktemp("stack"))
    with running_stack(state, "--sim", NIMBUS_GUEST_PORTS=gate.guest_ports) as up:
        yield up
        up.count_guests()
    assert up.popen.returncode == 0
    assert list((state / "pids").iterdir()) == []
    assert find_leaks(state) == ()


@pytest.fixture(scope="session")
def github(stack: Stack) -> Github:
    """The fake GitHub of the shared stack."""
    return open_github(stack)
