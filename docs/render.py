"""Writes docs/configuration.md and docs/states.md from the code: `.venv/bin/python docs/render.py`.

Never holds a name or a default itself: those are the settings classes' and the transition tables'. Words that no
class has are in configuration.toml. Tests call `render_*` and compare, so a page that has drifted fails.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))  # called as a script, Python sees only this folder

from pydantic import BaseModel  # noqa: E402 - after the path
from pydantic.fields import FieldInfo  # noqa: E402

from nimbus.control_plane.settings import Settings as ControlPlaneSettings  # noqa: E402
from nimbus.host_agent.settings import AgentSettings, HostSettings  # noqa: E402
from nimbus.logging_pipeline.settings import Settings as LoggingSettings  # noqa: E402
from nimbus.model import job, lease  # noqa: E402
from nimbus.sim.settings import SimSettings  # noqa: E402

ROOMS: dict[str, tuple[str, type[BaseModel]]] = {
    "control_plane": ("Control plane (`python -m nimbus.control_plane.main`)", ControlPlaneSettings),
    "host_agent": ("Host agent (`nimbus agent run`, `python -m nimbus.host_agent.main`)", AgentSettings),
    "logging_pipeline": ("Logging pipeline (`python -m nimbus.logging_pipeline.main`)", LoggingSettings),
    "sim": ("Fake GitHub (`python -m nimbus.sim.main`)", SimSettings),
}
GENERATED = "<!-- written by docs/render.py: change the code or docs/configuration.toml, and run it again -->"
CONFIGURATION = """\
Everything is set by environment variables, read once when a process starts. A wrong or missing one ends the process
with status 2 (the agent: 1) and one line that names it; no value of a secret is ever printed. Control plane and logging
pipeline report a `NIMBUS_*` variable that nobody knows. Variables marked *host* are read by `nimbus run` and
`nimbus vms` too. `nimbus up` sets whatever its processes need from each other."""
MACHINES = """\
Drawn from `TRANSITIONS` in `nimbus/model/lease.py`; SQL repeats the guard. Each `lease` raises the fence. The holder of
a lease may `finish`; when it falls silent the lease ends by `expire` (back into the queue: the next lease has a higher
fence and a fresh microVM) or by `lose` (GitHub gives the job no second runner)."""
JOBS = """\
Drawn from `merge` in `nimbus/model/job.py`. GitHub promises neither order nor exactly-once, so states are ranked: an
event that would move a job back changes nothing, and a job may be first heard of in any state. One exception lies in
`nimbus/control_plane/queue/outcome.py`: a job of our own API is `queued` again when its machine is."""


@dataclass(frozen=True)
class Variable:
    """One environment variable as one room reads it."""

    name: str
    field: str
    meaning: str
    default: str  # "required", "none" and "empty" are words, all else is the value
    secret: bool


def read_words() -> dict[str, Any]:
    """configuration.toml."""
    return tomllib.loads((DOCS / "configuration.toml").read_text())


def find_variables(room: str) -> list[Variable]:
    """Every variable that a room reads, in the order of its class."""
    words = read_words()
    own = words["meaning"]["*"] | words["meaning"].get(room, {})
    found = []
    for name, field in ROOMS[room][1].model_fields.items():
        default = words["computed"].get(f"{room}.{name}") or _describe_default(field)
        meaning = field.description or own.get(name, "")
        found.append(Variable(f"NIMBUS_{name.upper()}", name, meaning, default, "Secret" in repr(field.annotation)))
    return found


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return str(field.default) or "empty"


def render_configuration() -> str:
    """The whole of docs/configuration.md."""
    words = read_words()
    parts = [
        "# Configuration",
        GENERATED,
        CONFIGURATION,
        *(_render_room(room) for room in ROOMS),
        _table("Commands", ("variable", "meaning"), sorted(words["command"].items())),
        _render_corrected(words),
        _table(
            "Announced, not yet read",
            ("part", "variables"),
            [(part, ", ".join(f"`{name}`" for name in names)) for part, names in words["later"].items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _render_room(room: str) -> str:
    rows = []
    for variable in find_variables(room):
        meaning = variable.meaning
        if room == "host_agent" and variable.field in HostSettings.model_fields:
            meaning = f"*host* {meaning}"
        rows.append((variable.name, meaning + (" (secret)" if variable.secret else ""), _quote(variable.default)))
    return _table(ROOMS[room][0], ("variable", "meaning", "default"), rows)


def _render_corrected(words: dict[str, Any]) -> str:
    announced = {name: default for room in words["documented"].values() for name, default in room.items()}
    now = {variable.name: variable.default for room in ROOMS for variable in find_variables(room)}
    rows = [
        (name, _quote(announced[name]), _quote(now[name]), reason)
        for name, reason in sorted(words["corrected"].items())
    ]
    return _table("Defaults that differ from the announced ones", ("variable", "announced", "now", "why"), rows)


def _quote(default: str) -> str:
    return default if default in {"required", "none", "empty"} or " " in default else f"`{default}`"


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for first, *rest in rows:
        named = f"`{first}`" if first.startswith("NIMBUS_") else first
        lines.append("| " + " | ".join((named, *rest)) + " |")
    return f"## {title}\n\n" + "\n".join(lines)


def render_states() -> str:
    """The whole of docs/states.md, drawn from the tables in nimbus/model."""
    events: dict[tuple[str, str], list[str]] = {}
    for (state, event), after in lease.TRANSITIONS.items():
        events.setdefault((str(state), str(after)), []).append(str(event))
    arrows = [f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in events.items()]
    ends = [f"    {state} --> [*]" for state in lease.MachineState if state in lease.TERMINAL]
    machine = ["stateDiagram-v2", f"    [*] --> {lease.MachineState.QUEUED}", *arrows, *ends]
    steps = [
        f"    {before} --> {after}"
        for before in job.JobState
        for after in job.JobState
        if before is not after and job.merge(before, after) is after
    ]
    begins = [f"    [*] --> {state}" for state in job.JobState if job.merge(None, state) is state]
    parts = [
        "# States",
        GENERATED,
        "## A machine request",
        MACHINES,
        "```mermaid\n" + "\n".join(machine) + "\n```",
        "## A job",
        JOBS,
        "```mermaid\n" + "\n".join(["stateDiagram-v2", *begins, *steps]) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


PAGES = {"configuration.md": render_configuration, "states.md": render_states}

if __name__ == "__main__":
    for page, render in PAGES.items():
        (DOCS / page).write_text(render())
