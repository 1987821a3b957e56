"""The fake GitHub as a process: what it says when a setting is wrong, and how it starts and stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.forge import app_key

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "nimbus.sim.main"]
BASE = {"PATH": os.environ["PATH"]}
WEBHOOK = {"NIMBUS_SIM_WEBHOOK_URL": "http://127.0.0.1:1/"}


def run(**settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND, env=BASE | settings, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "NIMBUS_SIM_APP_PUBLIC_KEY: is required"),
        ({"NIMBUS_SIM_APP_PUBLIC_KEY": "no key"}, "NIMBUS_SIM_APP_PUBLIC_KEY: a PEM"),
        ({"NIMBUS_SIM_APP_PUBLIC_KEY": app_key().public_pem, **WEBHOOK}, "NIMBUS_SIM_WEBHOOK_SECRET"),
    ],
)
def test_a_missing_or_wrong_setting_is_named_and_ends_in_2(settings: dict[str, str], named: str) -> None:
    done = run(**settings)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert named in done.stderr


def test_a_taken_address_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run(NIMBUS_SIM_APP_PUBLIC_KEY=app_key().public_pem, NIMBUS_SIM_BIND=bind)
    assert done.returncode == 1
    assert "NIMBUS_SIM_BIND" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_it_logs_its_address_answers_and_ends_at_sigterm() -> None:
    one_line_key = app_key().public_pem.replace("\n", "\\n")  # as an environment file writes it
    settings = BASE | {"NIMBUS_SIM_APP_PUBLIC_KEY": one_line_key, "NIMBUS_SIM_BIND": "127.0.0.1:0"}
    with subprocess.Popen(COMMAND, env=settings, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        serving = json.loads(process.stderr.readline())
        with urllib.request.urlopen(f"{serving['urls'][0]}/healthz", timeout=10) as answer:  # noqa: S310 -- http
            assert json.loads(answer.read()) == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
