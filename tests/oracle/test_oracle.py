"""The oracle itself: a block that leaks fails with the leak's name, one that fails anyway keeps its cause."""

from __future__ import annotations

import threading

import pytest

from nimbus.host.inventory import Territory
from tests.oracle import leak_oracle, open_territory, watch_leaks

pytestmark = pytest.mark.root
__all__ = ["leak_oracle"]  # a fixture, found by pytest under this name


def test_a_block_that_leaks_fails_with_the_name_of_what_it_left() -> None:
    with open_territory() as territory:
        left = territory.state_root / "vms" / "left"
        with pytest.raises(AssertionError, match=f"files: {left}"), watch_leaks(territory):
            left.touch()


def test_the_cause_of_a_failing_block_is_not_hidden_by_what_it_left() -> None:
    with open_territory() as territory, pytest.raises(LookupError, match="the cause"), watch_leaks(territory):
        _leak_and_fail(territory)


def test_what_goes_by_itself_within_the_grace_is_no_leak() -> None:
    with open_territory() as territory:
        going = territory.state_root / "vms" / "going"
        timer = threading.Timer(0.2, going.unlink)
        with watch_leaks(territory):
            going.touch()
            timer.start()
        timer.join()
        assert not going.exists()


def test_the_fixture_gives_an_empty_territory(leak_oracle: Territory) -> None:
    assert sorted(path.name for path in leak_oracle.state_root.iterdir()) == ["ledger", "vms"]


def _leak_and_fail(territory: Territory) -> None:
    (territory.state_root / "vms" / "left").touch()
    raise LookupError("the cause")
