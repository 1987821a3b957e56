"""The model of the lease protocol: it comes from the code, it holds in small, and it sees what is broken.

`make model` searches the whole.
"""

from __future__ import annotations

import pytest

from nimbus.model.lease import TERMINAL, TRANSITIONS, MachineState
from tests.model.generate import TABLES, render_tables
from tests.model.run import BROKEN, LONG, SMALL, find_missing, find_numbers, search

_RUNNING = MachineState.RUNNING
spin = pytest.mark.skipif(bool(find_missing()), reason=f"needs {' and '.join(find_missing())}: make setup installs it")


def test_the_model_speaks_of_the_states_and_steps_of_the_code() -> None:
    assert TABLES.read_text() == render_tables(), "run: .venv/bin/python -m tests.model.generate"


def test_no_terminal_state_has_a_step_so_that_one_may_stand_for_all() -> None:
    assert [step for step in TRANSITIONS if step[0] in TERMINAL] == []


def test_a_started_machine_ends_as_an_unstarted_one_so_that_one_may_stand_for_both() -> None:
    ends = {
        state: {event: to for (origin, event), to in TRANSITIONS.items() if origin is state and to is not _RUNNING}
        for state in (MachineState.LEASED, _RUNNING)
    }
    assert ends[MachineState.LEASED] == ends[_RUNNING]


@spin
@pytest.mark.parametrize("numbers", [SMALL, LONG], ids=["small", "long leases"])
def test_no_run_of_the_protocol_breaks_a_promise(numbers: dict[str, int]) -> None:
    found = search(numbers)
    assert (found.error, found.steps) == ("", ())
    assert found.states > 10_000, "the model can hardly move"


@spin
def test_no_run_of_the_protocol_lasts_for_ever() -> None:
    assert search(SMALL, cycles=True).error == ""


@spin
@pytest.mark.parametrize("broken", BROKEN)
def test_the_search_catches_what_is_broken_on_purpose(broken: str) -> None:
    found = search(find_numbers(broken), broken)
    assert "assertion violated" in found.error
    assert found.steps != ()
