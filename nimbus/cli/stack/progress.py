"""What a person at a terminal, or a program reading JSON lines, sees of a stack. Pure rendering, then one write."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from nimbus.cli.stack.rooms import StackPlan
from nimbus.cli.stack.service import LOOPBACK, Service
from nimbus.cli.stack.supervisor import Report, Told

_QUIET = frozenset({"starting", "stopping"})  # what follows within moments says it with its milliseconds


def render_told(told: Told) -> str | None:
    """One line, or None for what would only repeat."""
    if told.what in _QUIET:
        return None
    if told.what == "died":
        return f"  {told.service:<18}died: {told.detail}"
    return f"  {told.service:<18}{told.what:<8}{told.ms:>7.0f} ms"


def show_lines() -> Report:
    """A report for people, on stderr."""

    def report(told: Told) -> None:
        line = render_told(told)
        if line is not None:
            print(line, file=sys.stderr, flush=True)

    return report


def show_json() -> Report:
    """A report for programs: one JSON object a line on stdout."""

    def report(told: Told) -> None:
        body: dict[str, object] = {"event": told.what, "service": told.service}
        if told.what in {"ready", "done", "stopped"}:
            body["ms"] = round(told.ms, 1)
        if told.pid is not None:
            body["pid"] = told.pid
        if told.detail:
            body["detail"] = told.detail
        print(json.dumps(body), flush=True)

    return report


def render_ready_json(plan: StackPlan, services: Sequence[Service]) -> str:
    """The JSON line that says that all is up."""
    urls = {"control_plane": plan.control_plane_url, "logs": plan.logs_url}
    if plan.sim:
        urls["sim"] = plan.sim_url
    ports = {name: port for service in services for name, port in service.ports.items()}
    return json.dumps({"event": "up", "state": str(plan.state), "urls": urls, "ports": ports})


def render_ready(plan: StackPlan, services: Sequence[Service]) -> str:
    """Where everything listens and what to try next. Holds no secret: those are in the env file."""
    named = [("control plane", plan.control_plane_url), ("logs", plan.logs_url)]
    if plan.sim:
        named.append(("fake GitHub", plan.sim_url))
    known = {plan.ports.control_plane, plan.ports.logging, plan.ports.sim}
    rest = [(name, f"{LOOPBACK}:{port}") for s in services for name, port in s.ports.items() if port not in known]
    listens = "\n".join(f"  {name:<18}{where}" for name, where in [*named, *rest])
    sim_hint = (
        '\n  curl -sH "Authorization: Bearer $NIMBUS_SIM_CONTROL_TOKEN" --data-binary @WORKFLOW.yml '
        '"$NIMBUS_SIM_URL/sim/workflows"'
        if plan.sim
        else ""
    )
    return f"""\
Everything is up. State and logs: {plan.state}
{listens}

In another terminal:
  set -a; . {plan.state}/env; set +a
  nimbus jobs submit --cmd 'uname -a' --wait
  nimbus jobs recent{sim_hint}

Ctrl-C stops it."""
