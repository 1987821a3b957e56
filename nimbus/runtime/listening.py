"""Starting Hypercorn in a nursery, and the one line that an operator reads where its address cannot be had.

Knows no application and no framework, so that the host agent, which serves metrics alone, loads neither.
Called by serving.py and host_agent/metrics.py; `run_room` is each service's way from `main` to its exit status.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVarTuple

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import Framework

from nimbus.model.errors import Conflict, NimbusError
from nimbus.runtime.masking import mask_text

Args = TypeVarTuple("Args")


async def start_hypercorn(
    nursery: trio.Nursery, app: Framework, config: Config, stop: Callable[[], Awaitable[None]], setting: str
) -> list[str]:
    """Serve until `stop` returns; the real addresses. Conflict where one is taken: `setting` changes it."""
    try:
        binds: list[str] = await nursery.start(partial(serve, app, config, shutdown_trigger=stop, mode="asgi"))
    except (OSError, BaseExceptionGroup) as error:
        refused = _find_os_error(error)
        if refused is None:
            raise
        where = ", ".join(config.bind)
        raise Conflict(f"cannot listen on {where}: {refused.strerror}; end who has it, or set {setting}") from None
    return binds


def _find_os_error(error: BaseException) -> OSError | None:
    """The one OSError that came out, under however many nurseries."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, OSError) else None


def run_room(name: str, run: Callable[[*Args], Awaitable[None]], *args: *Args) -> int:
    """Run a service to its end: 0 after a signal; else a line for each error and the first one's exit code."""
    codes = [0]
    try:
        trio.run(run, *args)
    except* NimbusError as group:
        codes = _tell(name, group)
    return codes[0]


def _tell(name: str, group: BaseExceptionGroup[NimbusError]) -> list[int]:
    codes: list[int] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            codes += _tell(name, error)
        else:
            print(f"{name}: {mask_text(str(error))}", file=sys.stderr)  # noqa: T201 - the operator's terminal
            codes.append(error.exit_code)
    return codes
