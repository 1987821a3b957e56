"""The fake GitHub as a process: what it says when a setting is wrong, and how it starts and stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        ({"NIMBUS_SIM_APP_PUBLIC_KEY": app_key().public_pem, "NIMBUS_SIM_OWNERS": "acme,a b"}, "NIMBUS_SIM_OWNERS"),
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


@contextmanager
def running(**settings: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, its address, and the events that it logged before it served."""
    one_line_key = app_key().public_pem.replace("\n", "\\n")  # as an environment file writes it
    env = BASE | {"NIMBUS_SIM_APP_PUBLIC_KEY": one_line_key, "NIMBUS_SIM_BIND": "127.0.0.1:0", **settings}
    with subprocess.Popen(COMMAND, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = [json.loads(process.stderr.readline())]
            while "urls" not in said[-1]:
                said.append(json.loads(process.stderr.readline()))
            yield process, said[-1]["urls"][0], [line["event"] for line in said[:-1]]
        finally:
            process.kill()


def ask(url: str, body: bytes | None = None) -> dict[str, object]:
    with urllib.request.urlopen(url, body, timeout=10) as answer:  # noqa: S310 -- http
        return dict(json.loads(answer.read()))


def test_it_logs_its_address_answers_and_ends_at_sigterm() -> None:
    with running() as (process, url, said):
        assert (ask(f"{url}/healthz"), said) == ({"status": "ok"}, [])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_every_organisation_that_is_named_is_there_once_and_in_order() -> None:
    with running(NIMBUS_SIM_OWNERS="acme, Nimbus-Demo,umbrella,ACME,", NIMBUS_SIM_INSTALLATION_ID="70") as (
        _,
        url,
        _said,
    ):
        accounts: Any = ask(f"{url}/sim/account")["accounts"]
    seen = [(account["owner"], account["installation_id"]) for account in accounts]
    assert seen == [("nimbus-demo", 70), ("acme", 71), ("umbrella", 72)]


def test_what_it_answered_is_known_after_a_sigkill(tmp_path: Path) -> None:
    folder = {"NIMBUS_SIM_STATE_DIR": str(tmp_path / "made" / "sim")}
    with running(**folder) as (process, url, _):
        run = ask(f"{url}/sim/workflows", b"jobs: {a: {runs-on: nimbus, steps: [{run: 'true'}]}}")
        process.kill()
        process.wait()
    with running(**folder) as (_, url, said):
        assert ask(f"{url}/sim/runs/{run['run_id']}") == run
    assert said == ["sim.recalled"]


def test_a_file_that_is_not_its_own_is_put_aside_in_one_line_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "world.jsonl").write_text("somebody's notes")
    with running(NIMBUS_SIM_STATE_DIR=str(tmp_path)) as (_, url, said):
        assert ask(f"{url}/sim/runs") == {"runs": []}
    assert said == ["sim.memory_unreadable"]
    [aside] = tmp_path.glob("world.jsonl.unreadable-*")
    assert aside.read_text() == "somebody's notes"


def test_a_state_folder_that_cannot_be_had_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(NIMBUS_SIM_APP_PUBLIC_KEY=app_key().public_pem, NIMBUS_SIM_STATE_DIR=str(tmp_path / "file"))
    assert done.returncode != 0
    assert done.stderr.startswith("sim: NIMBUS_SIM_STATE_DIR: ")
    assert done.stderr.count("\n") == 1
