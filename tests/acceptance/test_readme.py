"""README's commands, run: what they print is what README shows, but for numbers. Nothing is left on the host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.stack import LIMIT_S, clean_environment, find_leaks, prepare_state
from tests.guests import count_boots
from tests.hosts import needs_root, require_guest
from tests.readme import Shown, find_console_commands, find_fenced, normalise

pytestmark = [pytest.mark.root, pytest.mark.vm, needs_root]
ROOT = Path(__file__).parents[2]
LEFT_OUT = "…"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder of its own on the images that are built already."""
    require_guest()
    return prepare_state(tmp_path / "state")


def run_line(line: str, state: Path) -> list[str]:
    """What a shell prints for README's line, with this interpreter's Nimbus in the place of .venv/bin/nimbus."""
    here = line.replace(".venv/bin/nimbus", f"{sys.executable} -m nimbus")
    env = clean_environment(state)
    told = subprocess.run(
        ["sh", "-c", here],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    count_boots("qemu", 1)
    return told.stdout.splitlines()


@pytest.mark.parametrize("shown", find_console_commands(), ids=lambda shown: shown.line)
def test_a_command_prints_what_the_readme_shows(shown: Shown, state: Path) -> None:
    told = run_line(shown.line, state)
    assert [normalise(line) for line in told] == [normalise(line) for line in shown.output]
    assert find_leaks(state) == ()


def test_the_first_command_of_the_readme_works(state: Path) -> None:
    label, kernel = run_line(".venv/bin/nimbus run -- uname -a", state)
    assert label.startswith("nimbus: base on ")
    assert kernel.startswith("Linux nimbus ")
    assert find_leaks(state) == ()


@pytest.mark.services
@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(state: Path) -> None:
    told = run_line(f".venv/bin/nimbus demo --state {state}", state)
    printed = {normalise(line) for line in told}
    transcript = [line for line in find_fenced("text").splitlines() if line.strip() not in {"", LEFT_OUT}]
    assert len(transcript) > 30
    assert [line for line in transcript if normalise(line) not in printed] == []
    assert find_leaks(state) == ()
