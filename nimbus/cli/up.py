"""`nimbus up`: every part of Nimbus on this machine, each its own process, until Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click
import trio

from nimbus.cli.stack.progress import render_ready, render_ready_json, show_json, show_lines
from nimbus.cli.stack.rooms import IMAGE, StackPlan, documented_ports, free_ports
from nimbus.cli.stack.session import hold_state, plan_stack, run_session
from nimbus.host_agent.settings import default_state_dir
from nimbus.model.errors import NimbusError
from nimbus.storage.content import ImageStore
from nimbus.storage.images import resolve_image


@click.command()
@click.option("--sim", is_flag=True, help="Rehearse: a bundled fake GitHub in place of the real one.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    envvar="NIMBUS_STATE_DIR",
    help="Folder of databases, logs, secrets, images and VMs.  [default: /var/lib/nimbus for root]",
)
@click.option("--free-ports", "any_ports", is_flag=True, help="Any free ports instead of 8000, 8002, 8080 and 9460.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, for programs.")
def up(sim: bool, state: Path | None, any_ports: bool, as_json: bool) -> None:
    """Start the whole stack on this machine; Ctrl-C stops it and leaves nothing running.

    \b
    nimbus up --sim                     all of it, with a fake GitHub to rehearse with
    nimbus up                           with your GitHub App (NIMBUS_GITHUB_APP_ID, ..._PRIVATE_KEY, ..._WEBHOOK_SECRET)
    nimbus up --sim --state /tmp/x --free-ports      a second stack beside the first

    PostgreSQL and Redis are started too, unless NIMBUS_DATABASE_URL and NIMBUS_REDIS_URL name your own. Data stays
    in the state folder; a second `nimbus up` on it exits with 75.
    """
    with hold_state(state or default_state_dir()) as folder:
        ports = free_ports() if any_ports else documented_ports()
        plan = plan_stack(folder, ports, os.environ, sim=sim)
        if not as_json:
            click.echo(f"nimbus up: {folder}", err=True)
            _warn_of_missing_image(folder)
        trio.run(_run, plan, as_json)


async def _run(plan: StackPlan, as_json: bool) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, stop, as_json)
        async with trio.open_nursery() as stack:
            report = show_json() if as_json else show_lines()
            services = await stack.start(run_session, plan, report, stop)
            if services is not None:
                click.echo(render_ready_json(plan, services) if as_json else "\n" + render_ready(plan, services))
        nursery.cancel_scope.cancel()


async def _stop_on_signal(
    stop: trio.Event, as_json: bool, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The first signal stops in order; later ones change nothing, since every stop has its limit."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for signum in signals:
            if not as_json:
                told = "already stopping" if stop.is_set() else f"stopping ({signal.Signals(signum).name})"
                click.echo(f"\nnimbus up: {told}", err=True)
            stop.set()


def _warn_of_missing_image(state: Path) -> None:
    try:
        resolve_image(ImageStore(state / "images"), IMAGE)
    except NimbusError as error:
        click.echo(f"  note: {error}", err=True)
