"""`nimbus vms inspect`: one VM on one page. What is told is chosen in nimbus.host_agent.sight.inspection."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import click
import trio

from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.settings import HostSettings, plan_layout, read_settings
from nimbus.host_agent.sight.inspection import Facts
from nimbus.host_agent.sight.inspection import inspect as inspect_vm
from nimbus.host_agent.sight.standing import look_at
from nimbus.model.errors import NotFound
from nimbus.model.ids import VmId
from nimbus.wire.terminaltext import show_line

_MOMENTS = frozenset({"created_at", "since"})
_UNITS = {"_ms": "ms", "_s": "s", "_mib": "MiB", "_bytes": "bytes"}  # how the facts name their units
_WIDTH = 24
_MIB = 1 << 20


@click.command()
@click.argument("vm")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def inspect(vm: str, as_json: bool) -> None:
    """Show all about one VM: lease and deadline, processes, slot and addresses, use, limits, failures, paths.

    \b
    nimbus vms inspect 1f2e3d4c
    nimbus vms inspect 1f2e3d4c --json | jq .deadline_left_s

    Never shown: the job's command and environment, its tokens and secrets. Changes nothing; may be run at any time.
    """
    layout = plan_layout(read_settings(HostSettings))
    sight = look_at(Ledger(layout.ledger), VmId(vm))
    if sight is None:
        raise NotFound(f"VM {vm} is not in the ledger {layout.ledger}: `nimbus vms list` shows those that are")
    facts = trio.run(inspect_vm, layout, sight)
    click.echo(json.dumps(facts) if as_json else "\n".join(render(facts)))


def render(facts: Facts, indent: str = "") -> Iterator[str]:
    """Pure: one fact a line; what is absent is left out, but an empty list of failures is good news worth a line."""
    for name, value in facts.items():
        label = indent + _bare(name).replace("_", " ")
        if isinstance(value, dict):
            yield label
            yield from render(value, indent + "  ")
        elif isinstance(value, list):
            yield f"{label:<{_WIDTH}}{'none' if not value else _list(name, value)}"
        elif value is not None and value != "":
            yield f"{label:<{_WIDTH}}{_value(name, value)}"


def _list(name: str, values: list[Any]) -> str:
    if name == "claims":
        return ", ".join(values)
    return f"\n{'':<{_WIDTH}}".join(show_line(_item(value)) for value in values)


def _item(value: Any) -> str:
    """One of a list on a line: the facts of a dict side by side, but those that are absent."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{_bare(name).replace('_', ' ')} {fact}" for name, fact in value.items() if fact is not None)


def _bare(name: str) -> str:
    return name.removesuffix(_ending(name))


def _ending(name: str) -> str:
    return next((ending for ending in _UNITS if name.endswith(ending)), "")


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in _MOMENTS:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    unit = _UNITS.get(_ending(name), "")
    if unit == "s" and value < 0:
        return f"passed {-value} s ago"
    if unit == "bytes" and value >= _MIB:
        return f"{value / _MIB:.1f} MiB"
    return f"{value} {unit}" if unit else show_line(str(value))
