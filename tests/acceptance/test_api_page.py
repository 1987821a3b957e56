"""docs/api.md: each of its commands does what it says, in the order in which they stand there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.fleet import running_fleet
from tests.acceptance.stack import LIMIT_S
from tests.readme import ROOT, find_blocks

pytestmark = pytest.mark.services

PAGE = ROOT / "docs" / "api.md"


def test_every_command_of_the_page_works(tmp_path: Path, database_dsn: str, redis_url: str) -> None:
    (block,) = find_blocks(PAGE.read_text())
    commands = [line.strip() for line in block.splitlines() if line.strip()]
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "nimbus").write_text(f'#!/bin/sh\nexec {sys.executable} -m nimbus "$@"\n')
    (bin_folder / "nimbus").chmod(0o755)

    with running_fleet(tmp_path, database_dsn, redis_url, logs=False) as fleet:
        url = fleet.env["NIMBUS_CONTROL_PLANE_URL"]
        said = [command.replace("http://127.0.0.1:8000", url) for command in commands]
        script = "set -euo pipefail\n" + "\n".join(f"{command}; echo" for command in said)
        env = {**fleet.env, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
        ran = subprocess.run(
            ["bash", "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S
        )

    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr
    document, status, submitted, listed, cancelled = (
        json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")
    )
    assert document["openapi"].startswith("3.1.")
    assert "machines" in status
    assert submitted["job_id"] == 1
    assert [job["job_id"] for job in listed["jobs"]] == [1]
    assert cancelled["conclusion"] == "cancelled"
