"""`nimbus demo`: one job, the whole line, for real: signed webhook, lease, microVM, runner, logs, teardown, proof.

Composes `nimbus assets build`, the stack of `nimbus up --sim` and a workflow on the fake GitHub.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click
import trio

from nimbus.cli.rehearsal import Rehearsed, rehearse
from nimbus.cli.stack.progress import show_lines
from nimbus.cli.stack.rooms import StackPlan, free_ports
from nimbus.cli.stack.session import hold_state, plan_stack, run_session
from nimbus.cli.waterfall import plan_waterfall, render_json, render_waterfall
from nimbus.host.inventory import Leak, Territory, leftovers
from nimbus.model.errors import HostFault, NimbusError, Refused, Unavailable

DEFAULT_STATE = Path(".state") / "demo"
DEFAULT_LIMIT_S = 600.0


@dataclass(frozen=True)
class Script:
    """What is rehearsed."""

    workflow: bytes
    limit_s: float
    output_fd: int  # where the job's own output goes


class _Interrupted(NimbusError):
    """A signal ended the demo before it was done."""

    exit_code = 130


@click.command()
@click.option(
    "--workflow", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A workflow file of yours."
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_STATE,
    show_default=True,
    help="Folder of everything the demo keeps; the second run is quicker for it.",
)
@click.option("--limit", "limit_s", default=DEFAULT_LIMIT_S, show_default=True, help="Seconds the workflow may take.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; the job's output on stderr.")
def demo(workflow: Path | None, state: Path, limit_s: float, as_json: bool) -> None:
    """Run a workflow as GitHub would have it run here, with a fake GitHub.

    \b
    nimbus demo                        the bundled workflow
    nimbus demo --workflow ci.yml      one of yours (runs-on: nimbus; run steps)

    Exit status: 0 where GitHub's side saw `success` and nothing was left on this host, 1 otherwise.
    """
    text = workflow.read_bytes() if workflow else _bundled_workflow()
    with hold_state(state) as folder:
        began = time.monotonic()
        _say("guest image (kernel, initramfs, disk)")
        _build_assets(folder)
        plan = plan_stack(folder, free_ports(), os.environ, sim=True)
        output = sys.stderr if as_json else sys.stdout
        outcome = trio.run(_run, plan, Script(text, limit_s, output.fileno()))
        leaks = leftovers(Territory(folder, Path(os.environ.get("NIMBUS_RUNTIME_DIR", "/run/nimbus"))))
        took_s = time.monotonic() - began
    if as_json:
        click.echo(json.dumps(render_outcome(outcome, leaks, took_s)))
    else:
        click.echo(_render_ending(outcome, leaks, took_s))
    sys.exit(0 if outcome.succeeded and not leaks else 1)


async def _run(plan: StackPlan, script: Script) -> Rehearsed:
    """The stack up, the workflow through it, the stack down."""
    stop = trio.Event()
    outcome: list[Rehearsed] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, stop)
        async with trio.open_nursery() as stack:
            _say("the stack")
            if await stack.start(run_session, plan, show_lines(), stop) is not None:
                await _rehearse_until(stop, plan, script, outcome)
            _say("stopping")
            stop.set()
        nursery.cancel_scope.cancel()
    if not outcome:
        raise _Interrupted("interrupted; everything was stopped")
    return outcome[0]


async def _rehearse_until(stop: trio.Event, plan: StackPlan, script: Script, outcome: list[Rehearsed]) -> None:
    """The rehearsal, given up at a signal or at its limit; whatever happens, the stack is told to stop."""

    async def watch_stop() -> None:
        await stop.wait()
        nursery.cancel_scope.cancel()

    try:
        with trio.fail_after(script.limit_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_stop)
                _say("the workflow")
                outcome.append(await rehearse(plan, script.workflow, _say_more, script.output_fd))
                nursery.cancel_scope.cancel()
    except trio.TooSlowError:
        stop.set()
        raise Unavailable(f"the workflow did not end within {script.limit_s:g} s; logs: {plan.state}/logs") from None
    except BaseException:
        stop.set()
        raise


async def _stop_on_signal(stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            stop.set()


def render_outcome(outcome: Rehearsed, leaks: tuple[Leak, ...], took_s: float) -> dict[str, object]:
    """Pure: the JSON of a demo."""
    jobs = []
    for job, machine in zip(outcome.run["jobs"], outcome.machines, strict=True):
        told = {name: machine.get(name) for name in ("machine_id", "fence", "state", "ending", "exit_code", "cause")}
        waterfall = render_json(plan_waterfall(job, machine))
        jobs.append({"name": job["name"], "conclusion": job["conclusion"], "machine": told, "waterfall": waterfall})
    return {
        "conclusion": outcome.run["conclusion"],
        "jobs": jobs,
        "leaks": [str(leak) for leak in leaks],
        "took_s": round(took_s, 1),
    }


def _render_ending(outcome: Rehearsed, leaks: tuple[Leak, ...], took_s: float) -> str:
    parts = []
    for job, machine in zip(outcome.run["jobs"], outcome.machines, strict=True):
        ended = f"machine {machine.get('machine_id', '?')} {machine.get('state', 'unknown')}"
        cause = f" ({machine['cause']})" if machine.get("cause") else ""
        parts.append(f"\nJob '{job['name']}': GitHub says completed/{job['conclusion']}; {ended}{cause}\n")
        parts.append(render_waterfall(plan_waterfall(job, machine)))
    if leaks:
        parts.append("\nLeft on this host:\n" + "\n".join(f"  {leak}" for leak in leaks))
    else:
        parts.append("\nLeft on this host: nothing (processes, netns, links, nft, cgroups, mounts, files, slots)")
    parts.append(f"The run ended completed/{outcome.run['conclusion']}; all of it took {took_s:.1f} s")
    return "\n".join(parts)


def _build_assets(state: Path) -> None:
    env = {**os.environ, "NIMBUS_STATE_DIR": str(state)}
    built = subprocess.run([sys.executable, "-m", "nimbus", "assets", "build"], env=env, stdout=sys.stderr, check=False)
    if built.returncode != 0:
        raise HostFault("the guest image could not be built; see above")


def _bundled_workflow() -> bytes:
    try:
        return (resources.files("nimbus.sim") / "workflows" / "hello.yml").read_bytes()
    except OSError as error:
        raise Refused("the bundled workflow is missing from this installation: use --workflow") from error


def _say(text: str) -> None:
    click.echo(f"==> {text}", err=True)


def _say_more(text: str) -> None:
    click.echo(f"    {text}", err=True)
