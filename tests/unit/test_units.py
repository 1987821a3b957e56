"""The systemd units under deploy/: what a restart of them does to running jobs stands in a few lines that must stay."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
# Each of these gives a service a mount namespace of its own; see the comment in the unit.
MOUNT_NAMESPACE = (
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateMounts",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "BindPaths",
    "TemporaryFileSystem",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
    "RootDirectory",
    "DynamicUser",
)


def read_unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    parser.read_string((DEPLOY / name).read_text())
    return parser


def test_a_restart_of_the_agent_leaves_every_process_but_the_agent_alone() -> None:
    service = read_unit("nimbus-agent.service")["Service"]
    assert (service["KillMode"], service["Delegate"], service["KillSignal"]) == ("process", "yes", "SIGTERM")
    assert int(service["TimeoutStopSec"].removesuffix("s")) > 5  # what a detach may take


def test_a_crashed_agent_is_started_again_and_a_drained_one_is_not() -> None:
    unit = read_unit("nimbus-agent.service")
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_the_agent_shares_the_hosts_mounts_and_systemd_removes_no_slots() -> None:
    service = read_unit("nimbus-agent.service")["Service"]
    assert [name for name in (*MOUNT_NAMESPACE, "RuntimeDirectory", "User") if name in service] == []


def test_systemd_itself_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    text = (DEPLOY / "nimbus-agent.service").read_text()
    copy = tmp_path / "nimbus-agent.service"
    copy.write_text(text.replace("/opt/nimbus/.venv/bin/nimbus", "/bin/true"))  # the program is not installed there
    argv = ["systemd-analyze", "verify", "--man=no", str(copy)]
    told = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert [line for line in told.stderr.splitlines() if "nimbus-agent" in line] == []
