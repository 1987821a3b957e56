"""`nimbus vms`: what lives on this host, and the broom. Works on the ledger alone; needs no service.

The page of one VM is nimbus.cli.vmpage, its console nimbus.cli.vmconsole.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict

import click
import trio

from nimbus.cli.events import quiet_events
from nimbus.cli.tables import render_table
from nimbus.cli.vmconsole import logs
from nimbus.cli.vmpage import inspect
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import ReapReport, reap
from nimbus.host_agent.settings import HostSettings, find_layout, plan_layout, read_settings
from nimbus.host_agent.sight.standing import Sight, Standing, look
from nimbus.model.errors import Refused
from nimbus.model.ids import VmId

_HEAD = ("VM", "STATE", "BACKEND", "LEASE", "AGE", "CLAIMS")


@click.group()
def vms() -> None:
    """Look at this host's VMs and clear away what a killed process left.

    \b
    nimbus vms list                 the ledger, one VM a line
    nimbus vms inspect 1f2e3d4c     all about one: lease, deadline, processes, addresses, use
    nimbus vms logs 1f2e3d4c        the end of its serial console; --follow while it lives
    nimbus vms purge --all          tear down every VM that no live process supervises
    nimbus vms purge 1f2e3d4c       only that one

    \b
    States: running       an agent or a `nimbus run` supervises it
            adoptable     it runs on under its keeper; the next agent goes on with it
            orphan        nobody supervises it and nobody will: purge it
            ended-untold  it is over; the next agent tells the control plane how
            unreadable    its record was written by a newer release, or torn by a crash
    Leases: a number is the control plane's, local a `nimbus run`, else it waits in the pool
    """


vms.add_command(inspect)
vms.add_command(logs)


@vms.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_vms(as_json: bool) -> None:
    """List the VMs in this host's ledger, oldest first."""
    ledger = Ledger(plan_layout(read_settings(HostSettings)).ledger)
    rows = [_row(sight) for sight in look(ledger)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo("no VMs on this host; `nimbus run -- uname -a` makes one")
        return
    click.echo(render_table(_HEAD, (_cells(row) for row in rows)))
    for line in _advise(str(row["state"]) for row in rows):
        click.echo(line)


@vms.command()
@click.argument("vm", required=False)
@click.option("--all", "everything", is_flag=True, help="Every VM that no live process supervises.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def purge(vm: str | None, everything: bool, as_json: bool) -> None:
    """Tear down VMs whose supervisor is gone, and sweep up what bears their names.

    A VM with a live supervisor (an agent, a `nimbus run`) is left alone and reported. The end of a job that
    the control plane has not heard of stays in the ledger: start the agent, which tells it.
    A VM that the next agent would adopt is ended: where an agent is to come back, start it instead.

    Exit status 1 where something could not be removed; run it again, or read the record's failures.
    """
    if (vm is None) == (not everything):
        raise Refused("name one VM, or say --all")
    quiet_events()
    layout = find_layout(read_settings(HostSettings))
    report = trio.run(_purge, layout, VmId(vm) if vm else None)
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        click.echo(_describe(report))
    sys.exit(1 if report.stuck or report.unseen else 0)


async def _purge(layout: HostLayout, only: VmId | None) -> ReapReport:
    return await reap(layout, living=True, only=only)


def _describe(report: ReapReport) -> str:
    lines = [f"torn down: {', '.join(report.reaped) or 'nothing was left'}"]
    if report.alive:
        lines.append(f"left alone, a live process supervises them: {', '.join(report.alive)}")
    if report.untold:
        lines.append(f"over, but the control plane has not heard how: {', '.join(report.untold)}; start the agent")
    if report.stuck:
        lines.append(f"NOT clean: {', '.join(report.stuck)}; see `nimbus vms inspect VM` and run this again")
    if report.unseen:
        lines.append(f"NOT looked at, this host did not list them: {', '.join(report.unseen)}; run this again")
    return "\n".join(lines)


def _row(sight: Sight) -> dict[str, object]:
    head = {"vm": str(sight.vm), "state": str(sight.standing)}
    value = sight.record
    if value is None:
        return {**head, "backend": "", "lease": "", "age_s": 0, "claims": "", "failures": [sight.why]}
    return {
        **head,
        "backend": value.backend,
        "lease": str(value.lease.machine_id) if value.lease else value.waits_as or "local",
        "age_s": int(time.time() - value.created_at),
        "claims": ",".join(value.claims),
        "failures": list(value.failures),
    }


def _cells(row: dict[str, object]) -> tuple[str, ...]:
    names = ("vm", "state", "backend", "lease", "age_s", "claims")
    vm, state, backend, lease, age_s, claims = (str(row[name]) for name in names)
    return (vm, state, backend, lease, f"{age_s} s" if backend else "", claims)


def _advise(states: Iterable[str]) -> list[str]:
    """What to do about the states that call for something."""
    seen = set(states)
    advice = {
        Standing.ADOPTABLE: "adoptable: start the agent; it goes on with them until their deadline",
        Standing.ORPHAN: "orphan: `nimbus vms purge --all`, or an agent's next round within a minute",
        Standing.ENDED_UNTOLD: "ended-untold: start the agent; it tells the control plane",
        Standing.UNREADABLE: "unreadable: `nimbus vms inspect VM` says why",
    }
    return ["", *told] if (told := [line for state, line in advice.items() if state in seen]) else []
