"""`nimbus demo`, the whole line with a real guest: success, a failing workflow, Ctrl-C in the middle of a job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nimbus.host.inventory import Territory, leftovers
from tests.guests import count_boots
from tests.hosts import BUILT_IMAGES, needs_root, require_guest

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow, needs_root]

LIMIT_S = 300.0
RUNTIME_DIR = Path("/run/nimbus")
FAILING = """
name: failing
jobs:
  fails:
    runs-on: nimbus
    steps:
      - name: Talk and fail
        run: |
          echo "the last words"
          exit 3
      - name: Never
        run: echo "never reached"
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder of its own on the images that are built already."""
    require_guest()
    (tmp_path / "images").symlink_to(BUILT_IMAGES)
    return tmp_path


def start_demo(state: Path, *words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "nimbus", "demo", "--state", str(state), *words]
    env = {name: value for name, value in os.environ.items() if name != "NIMBUS_STATE_DIR"}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_a_workflow_succeeds_and_leaves_nothing(state: Path) -> None:
    with start_demo(state, "--json") as demo:
        out, err = demo.communicate(timeout=LIMIT_S)
    count_boots("qemu", 1)
    assert demo.returncode == 0, err
    told = json.loads(out)
    (job,) = told["jobs"]
    assert (told["conclusion"], told["leaks"]) == ("success", [])
    assert (job["machine"]["state"], job["machine"]["fence"]) == ("done", 1)
    phases = [row["phase"] for row in job["waterfall"]]
    wanted = ["webhook", "lease", "network", "disk", "VMM", "kernel", "guest ready", "runner online", "job", "teardown"]
    assert [phase for phase in phases if phase in wanted] == wanted
    assert "Hello from a throw-away microVM" in err
    assert leftovers(Territory(state, RUNTIME_DIR)) == ()


def test_a_failing_workflow_exits_1_with_its_output_shown(state: Path) -> None:
    workflow = state / "failing.yml"
    workflow.write_text(FAILING)
    with start_demo(state, "--workflow", str(workflow)) as demo:
        out, err = demo.communicate(timeout=LIMIT_S)
    count_boots("qemu", 1)
    assert demo.returncode == 1, err
    assert "the last words" in out
    assert "never reached" not in out
    assert "completed/failure" in out
    assert "Left on this host: nothing" in out


def test_ctrl_c_in_the_middle_of_a_job_leaves_nothing(state: Path) -> None:
    workflow = state / "long.yml"
    workflow.write_text("jobs:\n  long:\n    runs-on: nimbus\n    steps:\n      - run: echo begun; sleep 600\n")
    with start_demo(state, "--workflow", str(workflow)) as demo:
        assert demo.stdout is not None
        assert any("begun" in line for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=LIMIT_S)
    count_boots("qemu", 1)
    assert demo.returncode == 130
    assert "everything was stopped" in err
    assert leftovers(Territory(state, RUNTIME_DIR)) == ()
    assert list((state / "pids").iterdir()) == []
