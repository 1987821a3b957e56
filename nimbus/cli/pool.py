"""`nimbus pool`: the machines that wait for jobs on this host, as the ledger has them. Needs no service."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import click

from nimbus.cli.tables import render_table
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import read_shape
from nimbus.host_agent.pool.sizes import KINDS, parse_pool
from nimbus.host_agent.settings import HostSettings, plan_layout, read_settings
from nimbus.host_agent.sight.standing import Sight, Standing, look
from nimbus.model.errors import Refused
from nimbus.model.record import Record
from nimbus.model.vm import Shape

_HEAD = ("VM", "KIND", "SHAPE", "IMAGE", "STATE", "AGE")
_ASK = "NIMBUS_POOL"


@click.group()
def pool() -> None:
    """Machines made ahead of their jobs, which a job of the same image and shape is given at once.

    \b
    nimbus pool status          what waits now, and what is asked for
    nimbus pool status --json

    \b
    Kinds: built        slot, network, disk and jail are there; no VMM yet
           prespawned   its VMM runs; a template's memory is not loaded yet
           warm         a clone of the template, paused; made a machine of its own when a job takes it

    \b
    The agent fills the pool as its environment says, and builds a template that is missing:
      NIMBUS_POOL='1x256x2048 prespawned=2 warm=1; 4x8192 warm=1'    CPUs x MiB of memory x MiB of disk
      NIMBUS_POOL_IMAGE, NIMBUS_POOL_TTL
    """


@pool.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(as_json: bool) -> None:
    """What waits for jobs on this host."""
    sights = look(Ledger(plan_layout(read_settings(HostSettings)).ledger))
    rows = [row for sight in sights if (row := _row(sight)) is not None]
    asked = parse_pool(os.environ.get(_ASK, ""))
    wanted = {_render_shape(size.shape): dict(size.numbers) for size in asked}
    if as_json:
        click.echo(json.dumps({"machines": rows, "asked_for": wanted}))
        return
    if rows:
        click.echo(render_table(_HEAD, (tuple(str(row[name.lower()]) for name in _HEAD) for row in rows)))
        click.echo("")
    click.echo("\n".join(_summarise(rows, wanted)))


def _summarise(rows: Sequence[dict[str, object]], wanted: dict[str, dict[str, int]]) -> Iterable[str]:
    waiting = Counter((str(row["shape"]), str(row["kind"])) for row in rows if row["state"] == Standing.RUNNING)
    for shape, numbers in wanted.items():
        told = ", ".join(f"{waiting[shape, kind]} of {number} {kind}" for kind, number in numbers.items())
        yield f"{shape}: {told}"
    if not wanted and not rows:
        yield f"nothing waits on this host; set {_ASK} for the agent: `nimbus pool --help`"
    elif not wanted:
        counted = Counter(kind for _, kind in waiting.elements())
        told = ", ".join(f"{counted[kind]} {kind}" for kind in KINDS if counted[kind])
        yield f"{told or 'none in use'}; what the agent was asked for stands in its own environment ({_ASK})"


def _row(sight: Sight) -> dict[str, object] | None:
    """A waiting machine as a row; None for every other VM."""
    record = sight.record
    if record is None or not record.waits_as:
        return None
    return {
        "vm": str(sight.vm),
        "kind": record.waits_as,
        "shape": _read_shape(record),
        "image": str(record.plan.get("image", "")),
        "state": str(sight.standing),
        "age": f"{int(time.time() - record.created_at)} s",
    }


def _read_shape(record: Record) -> str:
    try:
        return _render_shape(read_shape(record.plan))
    except (LookupError, TypeError, Refused):
        return "?"


def _render_shape(shape: Shape) -> str:
    return f"{shape.cpus}x{shape.mem_mib}x{shape.disk_mib}"
