"""No value of ours shows a secret in its repr: that is what tracebacks, assertions and careless log lines print."""

from __future__ import annotations

import dataclasses
import importlib
import io
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import structlog

import nimbus
from nimbus.cli.events import quiet_events

ROOT = Path(__file__).parents[2]
_SECRET = re.compile(r"(^|_)(token|secrets?|password|private_pem|jit_config|material|dsn|env|authorization)$")
_NONE = frozenset(
    {
        "nimbus.control_plane.services.Services",  # its parts are covered by themselves
        "nimbus.sim.workflow.StepSpec",  # of a workflow file, which is public in its repository
        "nimbus.wire.leaseapi.Grant",  # CacheToken hides its text
        "nimbus.wire.leaseapi.RenewRequest",  # wants_cache_token: whether
        "nimbus.wire.leaseapi.RenewReply",
    }
)


def find_dataclasses() -> Iterator[type]:
    for module in pkgutil.walk_packages(nimbus.__path__, "nimbus."):
        if module.name.endswith("__main__") or module.name.startswith("nimbus.control_plane.openapi."):
            continue  # shapes of JSON: nobody makes one
        for each in vars(importlib.import_module(module.name)).values():
            if isinstance(each, type) and dataclasses.is_dataclass(each) and each.__module__ == module.name:
                yield each


def find_shown() -> list[str]:
    return [
        f"{kind.__module__}.{kind.__qualname__}.{field.name}"
        for kind in find_dataclasses()
        for field in dataclasses.fields(kind)
        if field.repr and _SECRET.search(field.name) and f"{kind.__module__}.{kind.__qualname__}" not in _NONE
    ]


def test_no_dataclass_shows_a_field_that_holds_a_secret() -> None:
    # a process of its own: this one must not load every room
    program = f"from {__name__} import find_shown; print(find_shown())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)

    assert done.stdout == "[]\n"


def test_what_a_command_tells_of_an_agents_events_is_masked() -> None:
    told = io.StringIO()
    with redirect_stderr(told):
        quiet_events()
        structlog.get_logger().warning("lease.lost", why="GET /y?token=abcdef-of-it", log_token="s3cret")

    assert "lease.lost" in told.getvalue()
    assert "abcdef-of-it" not in told.getvalue()
    assert "s3cret" not in told.getvalue()
