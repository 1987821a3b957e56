"""One stack from lock to unlock: what `nimbus up` and `nimbus demo` have in common. Shows nothing by itself."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from nimbus.cli.stack.child import sweep_leftovers
from nimbus.cli.stack.credentials import ensure_secrets, write_private
from nimbus.cli.stack.rooms import Ports, StackPlan, check_state, open_services
from nimbus.cli.stack.service import Service
from nimbus.cli.stack.supervisor import Report, run_stack
from nimbus.model.errors import Conflict

ENV_FILE = "env"


class StackRuns(Conflict):
    """Another stack works on this state folder."""

    exit_code = 75  # EX_TEMPFAIL, as the agent's own lock


@contextmanager
def hold_state(state: Path) -> Iterator[Path]:
    """The state folder, locked for one supervisor; StackRuns while another has it."""
    state = check_state(state)
    fd = os.open(state / "stack.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackRuns(f"a stack already runs on {state}: stop it (Ctrl-C), or choose another --state") from None
        yield state
    finally:
        os.close(fd)


def plan_stack(state: Path, ports: Ports, environ: Mapping[str, str], *, sim: bool) -> StackPlan:
    """The plan of the stack on a locked state folder."""
    return StackPlan(state, sim, ports, ensure_secrets(state, environ), environ)


async def run_session(
    plan: StackPlan,
    report: Report,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[list[Service] | None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The whole stack until `stop`. Leaves no process and no env file.

    Hands over its services when all are ready, None when `stop` came first.
    """
    env_file = plan.state / ENV_FILE
    await trio.to_thread.run_sync(sweep_leftovers, plan.state)
    opened = open_services(plan)
    services = await trio.to_thread.run_sync(opened.__enter__)
    try:
        async with trio.open_nursery() as nursery:
            ready: bool = await nursery.start(run_stack, services, plan.state, report, stop)
            if ready:
                write_private(env_file, render_env(plan).encode())
            task_status.started(services if ready else None)
    finally:
        env_file.unlink(missing_ok=True)
        opened.__exit__(None, None, None)


def render_env(plan: StackPlan) -> str:
    """What another terminal needs to talk to this stack: `set -a; . STATE/env`."""
    values = {
        "NIMBUS_STATE_DIR": str(plan.state),
        "NIMBUS_CONTROL_PLANE_URL": plan.control_plane_url,
        "NIMBUS_LOGS_URL": plan.logs_url,
        "NIMBUS_JWT_SECRET": plan.secrets["NIMBUS_JWT_SECRET"],
        "NIMBUS_AGENT_TOKEN_SECRET": plan.secrets["NIMBUS_AGENT_TOKEN_SECRET"],
        "NIMBUS_METRICS_TOKEN": plan.secrets["NIMBUS_METRICS_TOKEN"],
    }
    if plan.sim:
        values["NIMBUS_SIM_URL"] = plan.sim_url
        values["NIMBUS_SIM_CONTROL_TOKEN"] = plan.secrets["NIMBUS_SIM_CONTROL_TOKEN"]
    return "".join(f"{name}={value}\n" for name, value in values.items())
