"""Asks the real Firecracker and its jailer all the stories and writes what they answered to refusals.json.

Run by hand, as root, when another release is pinned; with names of stories, only these are asked, and told on stdout:

NIMBUS_FC_BIN=/path/to/firecracker NIMBUS_JAILER_BIN=/path/to/jailer .venv/bin/python -m tests.fakes.record_refusals
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fakes.jailer_stories import JAILER_STORIES, play_jailer
from tests.fakes.play import Told, open_scene, play
from tests.fakes.stories import STORIES

RECORD = Path(__file__).with_name("refusals.json")


def read_record() -> dict[str, Any]:
    """What was recorded: `version`, `stories`, `jailer`."""
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return record


def main() -> None:
    binary = os.environ.get("NIMBUS_FC_BIN", "firecracker")
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.match(r"Firecracker v(\S+)", said)
    if version is None:
        raise SystemExit(f"{binary} is no Firecracker")
    wanted = sys.argv[1:] or list(STORIES)
    told: dict[str, list[Told]] = {}
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="story-") as folder, open_scene([binary], Path(folder)) as scene:
            told[name] = play(scene, STORIES[name])
    record = {"version": version[1], "stories": told, "jailer": {} if sys.argv[1:] else _ask_jailer(Path(binary))}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    if sys.argv[1:]:
        sys.stdout.write(text + "\n")
    else:
        RECORD.write_text(text + "\n")


def _ask_jailer(firecracker: Path) -> dict[str, Told]:
    jailer = Path(os.environ.get("NIMBUS_JAILER_BIN", "jailer"))
    told: dict[str, Told] = {}
    for name, story in JAILER_STORIES.items():
        with tempfile.TemporaryDirectory(prefix="story-") as folder:
            told[name] = play_jailer(jailer, firecracker.resolve(), Path(folder), story)
    return told


if __name__ == "__main__":
    main()
