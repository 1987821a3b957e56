"""The embedded ClickHouse engine as the pipeline sees it: a supervised child process and its address.

Starts it, waits until it is ready, starts it again with a growing pause when it dies, and stops it on the way
out. Never sends a query. Called by `main`; the address is read by `table`.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from nimbus.model.errors import HostFault

USERNAME = "nimbus"
EXIT_LOCKED = 75  # EX_TEMPFAIL: another process holds the folder
_READY_LIMIT_S = 60.0  # importing the library takes 1 s on a quiet machine, ten and more on a busy one
_STOP_LIMIT_S = 8.0  # more than the engine's own limit for its last query
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_LOCK_PATIENCE = 5  # starts that may find the folder locked: the engine of a killed pipeline needs moments to end
_log = structlog.get_logger()


@dataclass(frozen=True)
class Endpoint:
    """Where a ClickHouse server listens and who we are there."""

    url: str
    username: str
    password: str = field(repr=False)


class Engine:
    """The child's present address; None while it is away."""

    def __init__(self) -> None:
        self.endpoint: Endpoint | None = None
        self.process: trio.Process | None = None
        self.starts = 0


async def serve_engine(folder: Path, *, task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED) -> None:
    """Keep the engine running until cancelled; HostFault where the folder belongs to another process."""
    engine = Engine()

    def tell_ready() -> None:
        if engine.starts == 1:
            task_status.started(engine)

    pause_s, locked = _FIRST_PAUSE_S, 0
    while True:
        began = trio.current_time()
        try:
            status = await _run_once(folder, engine, tell_ready)
        finally:
            engine.endpoint = engine.process = None
        locked = locked + 1 if status == EXIT_LOCKED else 0
        if locked >= _LOCK_PATIENCE:
            raise HostFault(f"the log store in {folder} is served by another process: stop that one first")
        # a child that lived for a while earned a quick restart
        pause_s = _FIRST_PAUSE_S if trio.current_time() - began > 60 else min(pause_s * 2, _LONGEST_PAUSE_S)
        _log.warning("engine.died", status=status, restart_in_s=pause_s)
        await trio.sleep(pause_s)


async def _run_once(folder: Path, engine: Engine, tell_ready: Callable[[], None]) -> int:
    password = secrets.token_urlsafe(32)
    argv = [sys.executable, "-m", "nimbus.logging_pipeline.engine.main", str(folder)]
    process = await trio.lowlevel.open_process(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - asked for above
    try:
        await process.stdin.send_all(password.encode() + b"\n")
        port = await _read_port(process.stdout)
        if port is not None:
            engine.endpoint = Endpoint(f"http://127.0.0.1:{port}", USERNAME, password)
            engine.process = process
            engine.starts += 1
            _log.info("engine.ready", pid=process.pid, starts=engine.starts)
            tell_ready()
        return await process.wait()
    except trio.BrokenResourceError:  # it died before it read its password
        return await process.wait()
    finally:
        with trio.move_on_after(3 * _STOP_LIMIT_S, shield=True):
            await _stop(process)


async def _read_port(stdout: trio.abc.ReceiveStream) -> int | None:
    """The port in the child's first line, or None where it ended without one."""
    line = b""
    with trio.move_on_after(_READY_LIMIT_S):
        while not line.endswith(b"\n"):
            piece = await stdout.receive_some(4096)
            if not piece:
                return None
            line += piece
        return int(json.loads(line)["port"])
    raise HostFault(f"the log store's engine was not ready within {_READY_LIMIT_S:.0f} s")


async def _stop(process: trio.Process) -> None:
    """The end of its input asks it to finish its query and leave; SIGKILL (the engine survives it) insists."""
    with trio.move_on_after(_STOP_LIMIT_S):
        if process.stdin is not None:
            await process.stdin.aclose()
        await process.wait()
    if process.returncode is None:
        process.kill()
    await process.wait()
    if process.stdout is not None:
        await process.stdout.aclose()
