"""The engine's own process: `python -m nimbus.logging_pipeline.engine.main FOLDER`, started by `engine`.

Reads the password from its standard input, prints one JSON line with its port when ready, and serves until
that input ends, which is also what the death of its parent looks like. It never listens beyond loopback.
It is a process of its own because the library brings gigabytes and crashes of its own with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
from functools import partial

import hypercorn.trio
import trio
from hypercorn.config import Config

from nimbus.logging_pipeline.engine.child import EXIT_LOCKED, USERNAME
from nimbus.logging_pipeline.engine.http import Credentials, engine_app
from nimbus.logging_pipeline.engine.lanes import EngineLanes

_LAST_QUERY_LIMIT_S = 5.0


def main() -> int:
    folder = os.path.abspath(sys.argv[1])
    password = sys.stdin.buffer.readline().strip().decode()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    lock = os.open(os.path.join(folder, "nimbus.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another process serves the log store in {folder}: stop it first", file=sys.stderr)  # noqa: T201 - for the parent
        return EXIT_LOCKED
    lanes = EngineLanes(os.path.join(folder, "engine"))
    try:
        trio.run(_serve, lanes, Credentials(USERNAME, password))
    finally:
        lanes.close()
    return 0


async def _serve(lanes: EngineLanes, credentials: Credentials) -> None:
    stop = trio.Event()
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.keep_alive_timeout = 300.0
    config.keep_alive_max_requests = 10**9
    config.graceful_timeout = _LAST_QUERY_LIMIT_S
    config.h11_max_incomplete_size = 2**18  # parameters travel in the URL
    threading.Thread(
        target=_wait_for_end_of_input, args=(trio.lowlevel.current_trio_token(), stop), daemon=True
    ).start()
    async with trio.open_nursery() as nursery:
        serve = partial(hypercorn.trio.serve, engine_app(lanes, credentials), config, shutdown_trigger=stop.wait)
        binds = await nursery.start(serve)
        print(json.dumps({"port": int(binds[0].rsplit(":", 1)[1])}), flush=True)  # noqa: T201 - read by the parent


def _wait_for_end_of_input(token: trio.lowlevel.TrioToken, stop: trio.Event) -> None:
    """A thread of its own, so that a long query cannot delay the end of an orphan for long."""
    sys.stdin.buffer.read()
    try:
        token.run_sync_soon(stop.set)
    except trio.RunFinishedError:
        return
    threading.Event().wait(_LAST_QUERY_LIMIT_S * 2)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
