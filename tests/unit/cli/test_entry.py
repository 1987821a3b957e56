"""Ctrl-C while `nimbus` still loads itself: the process ends as a shell expects and says nothing.

Python's own handler raises KeyboardInterrupt wherever it stands; in the middle of a class body that comes out as a
RuntimeError, a traceback and status 1. Each case is an interpreter of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPTING = """\
import os, signal

class Interrupting:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass  # a handler of Python's runs at a jump back, if not before

class Loading:
    field = Interrupting()

raise SystemExit("the interrupt changed nothing")
"""
ENTER = """\
import signal, sys
signal.signal(signal.SIGINT, getattr(signal, sys.argv.pop(1)))
from nimbus.__main__ import main
try:
    main()
finally:
    heard = signal.getsignal(signal.SIGINT)
    print("then", getattr(heard, "__name__", None) or heard.name)
"""


def run_python(*words: str, path: Path | None = None, ignoring: bool = False) -> subprocess.CompletedProcess[str]:
    """An interpreter to its end, that finds modules of this folder first."""
    env = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    before = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh") if ignoring else ()
    return subprocess.run([*before, sys.executable, *words], env=env, capture_output=True, text=True, check=False)


@pytest.fixture(params=["click", "trio"])
def interrupted_import(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder whose module is imported in place of a real one: by the command itself, or by `nimbus run`."""
    (tmp_path / f"{request.param}.py").write_text(INTERRUPTING)
    return tmp_path


def test_an_interrupt_while_the_command_loads_ends_it_without_a_word(interrupted_import: Path) -> None:
    ended = run_python("-m", "nimbus", "run", "--", "true", path=interrupted_import)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_an_interrupt_that_the_caller_ignores_stays_ignored_while_the_command_loads(interrupted_import: Path) -> None:
    ended = run_python("-m", "nimbus", "run", "--", "true", path=interrupted_import, ignoring=True)
    assert (ended.returncode, ended.stderr) == (1, "the interrupt changed nothing\n")


@pytest.mark.parametrize("handler", ["default_int_handler", "SIG_IGN"])
def test_a_loaded_command_has_the_handler_that_the_program_was_started_with(handler: str) -> None:
    entered = run_python("-c", ENTER, handler, "auth", "--help")
    assert (entered.returncode, entered.stdout.splitlines()[-1]) == (0, f"then {handler}")


def test_importing_the_entry_loads_no_command_and_leaves_the_interrupt_alone() -> None:
    script = (
        "import signal, sys, nimbus.__main__;"
        "print('click' in sys.modules, signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    assert run_python("-c", script).stdout == "False True\n"
