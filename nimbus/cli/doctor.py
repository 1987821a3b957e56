"""`nimbus doctor`: whether this host can run microVMs, why not, and what mends it. Judges nothing itself."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import cast

import click

from nimbus.host_agent.doctor.finding import Finding, Patient, Verdict
from nimbus.host_agent.doctor.rounds import examine, worst
from nimbus.host_agent.settings import KeptBackSettings, plan_layout, read_settings
from nimbus.wire.terminaltext import show_line


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array of {name, verdict, detail, remedy}.")
def doctor(as_json: bool) -> None:
    """Examine this host: rights, cgroups, network, firewall, disk, image, slots, records and leftovers.

    \b
    sudo nimbus doctor
    sudo nimbus doctor --json | jq '.[] | select(.verdict != "ok")'

    \b
    ok        as it should be
    degraded  VMs run, without something that a careful operator wants
    broken    no VM runs here before this is mended

    What can be tried is tried, on throw-away objects that are removed again; it may be run beside living VMs.
    Settings are read as the agent reads them (NIMBUS_STATE_DIR, NIMBUS_VMM, ...).
    Exit status: 0 nothing is broken; 1 something is.
    """
    found: list[Finding] = []
    for finding in examine(_patient()):
        found.append(finding)
        if not as_json:
            click.echo(render(finding))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        counts = Counter(finding.verdict for finding in found)
        click.echo("\n" + ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict))
    sys.exit(1 if worst(found) is Verdict.BROKEN else 0)


def _patient() -> Patient:
    settings = cast("KeptBackSettings", read_settings(KeptBackSettings))
    return Patient(
        plan_layout(settings),
        settings.vmm,
        settings.accel,
        settings.disk_reserve_mib,
        settings.fc_bin,
        settings.jailer_bin,
    )


def render(finding: Finding) -> str:
    """Pure: one line, and the remedy below it where there is something to mend."""
    line = show_line(f"{finding.verdict:<10}{finding.name:<15}{finding.detail}")
    return line + (f"\n{'':<10}{'':<15}-> {show_line(finding.remedy)}" if finding.remedy else "")
