"""`nimbus vms`: what lives on this host, and the broom. Works on the ledger alone; needs no service."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

import click
import trio

from nimbus.cli.events import quiet_events
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import ReapReport, reap
from nimbus.host_agent.settings import HostSettings, find_layout, read_settings
from nimbus.model.errors import HostFault, Refused
from nimbus.model.ids import VmId
from nimbus.model.record import Record


@click.group()
def vms() -> None:
    """List this host's VMs and clear away what a killed process left.

    \b
    nimbus vms list                 the ledger, one VM a line
    nimbus vms purge --all          tear down every VM that no live process supervises
    nimbus vms purge 1f2e3d4c       only that one
    """


@vms.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_vms(as_json: bool) -> None:
    """List the VMs in this host's ledger."""
    ledger = Ledger(find_layout(read_settings(HostSettings)).ledger)
    rows = [_row(ledger, vm) for vm in ledger.vms()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo("no VMs on this host; `nimbus run -- uname -a` makes one")
        return
    click.echo(f"{'VM':<10}{'STATE':<14}{'BACKEND':<10}{'LEASE':<12}{'AGE':>8}  CLAIMS")
    for row in rows:
        head = f"{row['vm']:<10}{row['state']:<14}{row['backend']:<10}{row['lease']:<12}"
        click.echo(f"{head}{row['age_s']:>7}s  {row['claims']}")


@vms.command()
@click.argument("vm", required=False)
@click.option("--all", "everything", is_flag=True, help="Every VM that no live process supervises.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def purge(vm: str | None, everything: bool, as_json: bool) -> None:
    """Tear down VMs whose supervisor is gone, and sweep up what bears their names.

    A VM with a live supervisor (an agent, a `nimbus run`) is left alone and reported.
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
    sys.exit(1 if report.stuck else 0)


async def _purge(layout: HostLayout, only: VmId | None) -> ReapReport:
    return await reap(layout, living=True, only=only)


def _describe(report: ReapReport) -> str:
    lines = [f"torn down: {', '.join(report.reaped) or 'nothing was left'}"]
    if report.alive:
        lines.append(f"left alone, a live process supervises them: {', '.join(report.alive)}")
    if report.stuck:
        lines.append(f"NOT clean: {', '.join(report.stuck)}; see `nimbus vms list --json` and run this again")
    return "\n".join(lines)


def _row(ledger: Ledger, vm: VmId) -> dict[str, object]:
    with ledger.take(vm) as record:
        supervised = record is None
    try:
        value = ledger.read(vm)
    except HostFault as error:
        return _blank(vm, "unreadable", str(error))
    if value is None:
        return _blank(vm, "gone", "")
    return _filled(value, supervised)


def _filled(value: Record, supervised: bool) -> dict[str, object]:
    return {
        "vm": str(value.vm),
        "state": "supervised" if supervised else "orphan",
        "backend": value.backend,
        "lease": str(value.lease.machine_id) if value.lease else "local",
        "age_s": int(time.time() - value.created_at),
        "claims": ",".join(value.claims),
        "failures": list(value.failures),
    }


def _blank(vm: VmId, state: str, why: str) -> dict[str, object]:
    return {"vm": str(vm), "state": state, "backend": "", "lease": "", "age_s": 0, "claims": "", "failures": [why]}
