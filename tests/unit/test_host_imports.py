"""What a host's processes load. A host must clean itself while every database is away, and trio_asyncio changes how
pyroute2 works in threads; import rules see direct imports alone, so the interpreter itself is asked here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOREIGN_TO_A_HOST = ("trio_asyncio", "asyncpg", "redis", "nimbus.runtime.postgres", "nimbus.runtime.redis")
SERVICES = ("nimbus.control_plane", "nimbus.logging_pipeline", "nimbus.sim")
NAME_LOADED = (
    "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"
)


def list_loaded(module: str) -> set[str]:
    """Every module that a fresh interpreter has once it imported this one."""
    argv = [sys.executable, "-c", NAME_LOADED, module]
    told = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(json.loads(told))


@pytest.mark.parametrize(
    "module", ["nimbus.host_agent.main", "nimbus.cli.run", "nimbus.cli.vms", "nimbus.cli.agent", "nimbus.cli.doctor"]
)
def test_a_hosts_process_loads_no_database_driver_and_no_service(module: str) -> None:
    loaded = list_loaded(module)
    assert module in loaded
    assert [name for name in (*FOREIGN_TO_A_HOST, *SERVICES) if name in loaded] == []


def test_the_control_plane_does_load_what_is_looked_for() -> None:
    assert set(FOREIGN_TO_A_HOST) - list_loaded("nimbus.control_plane.main") == set()


def test_nimbus_run_loads_no_web_server() -> None:
    assert {"quart", "hypercorn", "httpx2"} & list_loaded("nimbus.cli.run") == set()
