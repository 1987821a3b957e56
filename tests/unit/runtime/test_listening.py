"""An address that is taken is one clear line, in whichever room."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from nimbus.runtime.listening import run_room
from tests.hosts import needs_root

SECRET = "s" * 32
KEY = generate_private_key(65537, 2048)


def start(module: str, port: int, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The room with the taken `port` in each of its settings that name one."""
    named = {name: value.format(at=f"127.0.0.1:{port}", port=port) for name, value in env.items()}
    kept = {"PATH": os.environ["PATH"]}
    argv = [sys.executable, "-m", module]
    return subprocess.run(argv, env=kept | named, capture_output=True, text=True, timeout=60, check=False)


def check(done: subprocess.CompletedProcess[str], port: int, setting: str) -> None:
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "cannot listen" in line)
    assert f"127.0.0.1:{port}: Address already in use" in line
    assert line.endswith(f"or set {setting}")


@pytest.fixture
def port() -> int:
    """A port that somebody has for as long as this process lives."""
    taken = socket.create_server(("127.0.0.1", 0))
    number: int = taken.getsockname()[1]
    taken.detach()  # kept open on purpose: closing it would give the port back
    return number


def test_the_sim_says_whose_port_it_wants(port: int) -> None:
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    check(
        start("nimbus.sim.main", port, {"NIMBUS_SIM_BIND": "{at}", "NIMBUS_SIM_APP_PUBLIC_KEY": public}),
        port,
        "NIMBUS_SIM_BIND",
    )


@pytest.mark.slow
def test_the_logging_pipeline_says_whose_port_it_wants(port: int, tmp_path: Path) -> None:
    env = {
        "NIMBUS_LOGGING_BIND": "{at}",
        "NIMBUS_CONTROL_PLANE_URL": "http://127.0.0.1:9",
        "NIMBUS_JWT_SECRET": SECRET,
        "NIMBUS_STATE_DIR": str(tmp_path),
    }
    check(start("nimbus.logging_pipeline.main", port, env), port, "NIMBUS_LOGGING_BIND")


@pytest.mark.services
def test_the_control_plane_says_whose_port_it_wants(port: int, database_dsn: str, redis_url: str) -> None:
    private = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    env = {
        "NIMBUS_CONTROL_PLANE_BIND": "{at}",
        "NIMBUS_DATABASE_URL": database_dsn,
        "NIMBUS_REDIS_URL": redis_url,
        "NIMBUS_GITHUB_APP_ID": "1",
        "NIMBUS_GITHUB_APP_PRIVATE_KEY": private,
        "NIMBUS_GITHUB_WEBHOOK_SECRET": f"w{SECRET}",
        "NIMBUS_JWT_SECRET": SECRET,
        "NIMBUS_AGENT_TOKEN_SECRET": f"a{SECRET}",
        "NIMBUS_CACHE_SHARED_SECRET": f"c{SECRET}",
        "NIMBUS_PUBLIC_BASE_URL": "http://127.0.0.1:9",
    }
    check(start("nimbus.control_plane.main", port, env), port, "NIMBUS_CONTROL_PLANE_BIND")


@needs_root
@pytest.mark.root
def test_the_agent_says_whose_port_its_metrics_want(port: int, tmp_path: Path) -> None:
    env = {
        "NIMBUS_AGENT_METRICS_PORT": "{port}",
        "NIMBUS_AGENT_ID": "a",
        "NIMBUS_CONTROL_PLANE_URL": "http://127.0.0.1:9",
        "NIMBUS_CONTROL_PLANE_TOKEN": "t",
        "NIMBUS_STATE_DIR": str(tmp_path),
        "NIMBUS_VMM": "fake",
    }
    check(start("nimbus.host_agent.main", port, env), port, "NIMBUS_AGENT_METRICS_PORT")


def test_a_bug_is_not_made_a_line_of() -> None:
    async def crash() -> None:  # noqa: ASYNC124 - what trio.run wants
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run_room("room", crash)
