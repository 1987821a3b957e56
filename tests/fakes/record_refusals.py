"""Asks the real Firecracker all the stories and writes what it answered to refusals.json. Run by hand, as root:

NIMBUS_FC_BIN=/path/to/firecracker .venv/bin/python -m tests.fakes.record_refusals
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fakes.play import Told, open_scene, play
from tests.fakes.stories import STORIES

RECORD = Path(__file__).with_name("refusals.json")


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
    record = {"version": version[1], "stories": told}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    if sys.argv[1:]:
        sys.stdout.write(text + "\n")
    else:
        RECORD.write_text(text + "\n")


if __name__ == "__main__":
    main()
