"""`nimbus agent`: this host's agent, as commands. The agent itself is nimbus.host_agent.main."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

import click
import trio

from nimbus.cli.drain import NO_AGENT, drain_agent, say_json, say_lines
from nimbus.host import process
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.settings import HostSettings, plan_layout, read_settings
from nimbus.host_agent.sight.presence import find_agent, find_unit
from nimbus.host_agent.sight.standing import look

INTERRUPTED = 130  # 128 + SIGINT, as a shell says it


@click.group()
def agent() -> None:
    """Run this host's agent, look at it, and empty the host before it goes down.

    \b
    NIMBUS_AGENT_ID=host-1 NIMBUS_CONTROL_PLANE_URL=http://plane:8000 \\
    NIMBUS_CONTROL_PLANE_TOKEN=$(nimbus auth --agent-id host-1) nimbus agent run

    \b
    nimbus agent status                 which process, since when, and its machines
    nimbus agent drain                  no new job; wait for the running ones; then it leaves
    nimbus agent drain --within 3600    the same, and after an hour what still runs is torn down

    A restart needs no drain: SIGTERM leaves the running jobs to the next agent (`systemctl restart nimbus-agent`).
    """


@agent.command()
def run() -> None:
    """Lease machines and serve them. Needs root, and the variables above.

    \b
    SIGTERM   leaves within 5 s; running jobs live on under their keepers for the next agent
    SIGINT    tears every machine down and gives its lease back
    SIGUSR1   takes no new job, waits for the running ones, then leaves (`nimbus agent drain`)

    Exit status 75: another agent runs here.
    """
    from nimbus.host_agent.main import main  # late: `nimbus agent --help` needs no kernel

    main()


@agent.command()
@click.option(
    "--within", type=click.FloatRange(min=0), default=None, metavar="SECONDS", help="Tear down what then runs."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def drain(within: float | None, as_json: bool) -> None:
    """Empty this host: its agent takes no new job, waits for those that run, and leaves.

    \b
    nimbus agent drain && systemctl poweroff
    nimbus agent drain --within 3600

    Without --within it waits as long as the jobs take. With it, machines that still run then are torn down and
    their leases given back: jobs of our own API, and GitHub jobs not yet in progress, start again elsewhere.
    Ctrl-C ends the watching, not the drain.

    \b
    Exit status: 0 drained; 1 machines were torn down or left behind; 69 no agent runs on this state folder;
    75 the agent was told to tear down and is still there.
    """
    layout = _layout()
    found = find_agent(layout.state)
    if found is None:
        _say_none(layout)
        sys.exit(NO_AGENT)
    try:
        status = trio.run(drain_agent, Ledger(layout.ledger), found, within, say_json if as_json else say_lines)
    except KeyboardInterrupt:
        click.echo(f"nimbus: no longer watching; agent {found.pid} goes on draining", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status)


@agent.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(as_json: bool) -> None:
    """Whether an agent runs on this state folder, which process it is, and its machines. Exit status 69: none runs."""
    layout = _layout()
    found = find_agent(layout.state)
    if found is None:
        _say_none(layout)
        sys.exit(NO_AGENT)
    stands = Counter(str(s.standing) for s in look(Ledger(layout.ledger)) if s.record is None or s.record.lease)
    since = process.started_at(found)
    told = {"pid": found.pid, "since": since, "unit": find_unit(found.pid), "state": str(layout.state)}
    if as_json:
        click.echo(json.dumps({**told, "machines": dict(stands)}))
        return
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    click.echo(f"agent {found.pid} on {layout.state}, since {started}" + (f", {told['unit']}" if told["unit"] else ""))
    machines = ", ".join(f"{count} {stand}" for stand, count in sorted(stands.items()))
    click.echo(f"machines: {machines or 'none'}")


def _layout() -> HostLayout:
    return plan_layout(read_settings(HostSettings))


def _say_none(layout: HostLayout) -> None:
    click.echo(f"nimbus: no agent runs on {layout.state} (NIMBUS_STATE_DIR names another state folder)", err=True)
