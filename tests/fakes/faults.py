"""What a fake is told to do wrong: `faults.json` beside the installed fakes, read anew for each call.

    {"version": "1.12.0",
     "calls": {"PUT /snapshot/load": {"do": "refuse", "text": "no"}},
     "jailer": {"skip": ["netns", "cgroup", "uid", "seccomp"], "do": "hang"}}

A call's `do` is one of: refuse (`text`, `status`), hang (no answer, ever), drop (the connection is closed), exit
(`code`, before anything is done), exit_after (`code`, done and not answered), half (half an answer, then exit with
`code`).
`nth` counts the calls of that name in one process, from 1. The jailer's `do`: hang, exit (`code`, `text`); what it is
to `skip` it leaves out, and goes to the root of all cgroups instead of its own.
Written by install.py, read by fake_firecracker.py and fake_jailer.py.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

NAME = "faults.json"


class Faults:
    """Reads through a descriptor of the folder, so that it also works inside a jail."""

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._seen: Counter[str] = Counter()

    def read(self) -> dict[str, Any]:
        """All of them; none where there is no file."""
        if self._folder is None:
            return {}
        try:
            fd = os.open(NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return {}
        with os.fdopen(fd) as file:
            told = json.load(file)
        assert isinstance(told, dict)
        return told

    def of_call(self, call: str) -> dict[str, Any]:
        """What goes wrong with this call, now."""
        self._seen[call] += 1
        fault = self.read().get("calls", {}).get(call, {})
        return fault if fault.get("nth", self._seen[call]) == self._seen[call] else {}

    def of_jailer(self) -> dict[str, Any]:
        fault = self.read().get("jailer", {})
        assert isinstance(fault, dict)
        return fault
