"""Processes of the fault campaign: forked from one that has no thread and no loop, so a run costs no import.

A child's words go to a file. Called by case.py and campaign.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVarTuple

from nimbus.host import native

Args = TypeVarTuple("Args")
CRASHED = 70  # exit status of a child that let an exception out


class Child:
    """One forked process."""

    def __init__(self, pid: int, words: Path) -> None:
        self.pid = pid
        self.words = words
        self.status: int | None = None  # exit status; negative: the signal that ended it
        self._pidfd = native.pidfd_open(pid)

    def wait(self, limit_s: float) -> bool:
        """True once it has ended."""
        if self.status is None and select.select([self._pidfd], [], [], limit_s)[0]:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pidfd)
        return self.status is not None

    def send(self, signum: int) -> None:
        if self.status is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Ends it for certain."""
        self.send(signal.SIGKILL)
        if not self.wait(30):
            raise TimeoutError(f"process {self.pid} does not die")

    def told(self) -> str:
        """All that it said."""
        return self.words.read_text(errors="replace") if self.words.exists() else ""


def fork(words: Path, run: Callable[[*Args], object], *args: *Args) -> Child:
    """Run it in a process of its own whose stdout and stderr go to the file `words`."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, words)
    status = CRASHED
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        out = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        run(*args)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001, ASYNC103 - the end of a process: its parent reads the file
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ask(words: Path, limit_s: float, question: Callable[[*Args], Any], *args: *Args) -> Any:
    """What the question answers (as JSON) in a process of its own. Raises RuntimeError where it ends otherwise."""
    answer = words.with_suffix(".answer")
    child = fork(words, _answer, answer, question, args)
    if not child.wait(limit_s):
        child.kill()
        raise RuntimeError(f"no answer in {limit_s:g} s: {child.told()}")
    if child.status != 0:
        raise RuntimeError(f"ended with {child.status}: {child.told()}")
    return json.loads(answer.read_text())


def _answer(answer: Path, question: Callable[..., Any], args: tuple[Any, ...]) -> None:
    answer.write_text(json.dumps(question(*args)))


def wait_for(seen: Callable[[], bool], limit_s: float, pause_s: float = 0.05) -> bool:
    """Look again until it is seen; False where the limit passed first."""
    deadline = time.monotonic() + limit_s
    while not seen():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
    return True
