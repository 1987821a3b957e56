"""A terminal for each test; whatever its VMs leave behind fails the test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nimbus.host.inventory import Territory
from tests.hosts import BUILT_IMAGES, is_root, require_guest
from tests.oracle import open_territory, watch_leaks
from tests.vm.terminal import Terminal


@contextmanager
def open_terminal() -> Iterator[Terminal]:
    with open_territory() as territory:
        (territory.state_root / "images").symlink_to(BUILT_IMAGES)
        opened = Terminal(territory)
        try:
            with watch_leaks(territory):
                yield opened
        except BaseException:
            opened.call("vms", "purge", "--all")  # one test's failure is not to be the next one's
            raise


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """One person's shell."""
    _require_vms()
    with open_terminal() as opened:
        yield opened


@pytest.fixture
def other_terminal() -> Iterator[Terminal]:
    """Another's, with another state root, on the same host."""
    _require_vms()
    with open_terminal() as opened:
        yield opened


@contextmanager
def open_small(terminal: Terminal, size_mib: int) -> Iterator[Terminal]:
    """A terminal whose state folder is a filesystem of this size, within the other's."""
    root = terminal.territory.state_root / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(root)], check=True)
    try:
        (root / "images").symlink_to(BUILT_IMAGES)
        territory = Territory(root, terminal.territory.runtime_dir)
        with watch_leaks(territory):
            yield Terminal(territory)
    finally:
        subprocess.run(["umount", str(root)], check=True)
        root.rmdir()


def _require_vms() -> None:
    if not is_root():
        pytest.skip("needs root: namespaces, cgroups and mounts")
    require_guest()
