"""Replays what really happened through the model: `replay(lines)` raises Refused with the line that it does not allow.

The lines are JSON: those of `python -m nimbus.control_plane.trace`, and, where hosts were watched, lines of VMs:

    {"event": "vm_started", "machine_id": 3, "fence": 1, "agent_id": "host-1", "at_ms": 1790000000000}
    {"event": "vm_dead", "machine_id": 3, "fence": 1, "agent_id": "host-1", "at_ms": 1790000004000}

`at_ms` is when it was so, not when it was seen: a keeper's exit.json knows when its VM died. Spin decides, by the same
text that `make model` searches (control_plane.pml); nothing here knows a rule. Called by the kill runs of tests/faults
and by hand: `.venv/bin/python -m tests.model.replay trace.jsonl`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nimbus.model.lease import MachineEvent, MachineState

FOLDER = Path(__file__).parent
FENCES = 255  # trace.pml's; a request has far fewer leases
LIMIT_S = 300.0  # for spin; some thousand lines take seconds
_OTHERS = {"queue": "QUEUE", "ask_cancel": "ASK_CANCEL", "vm_started": "VM_STARTED", "vm_dead": "VM_DEAD"}
_WORDS = {**{event.value: event.name for event in MachineEvent}, **_OTHERS}
_STATES = {state.value: state.name for state in MachineState}
# Of one millisecond: a VM that died has done so before the control plane acts, one that started did so after.
_RANK = {"vm_dead": 0, "vm_started": 2}


class Refused(AssertionError):
    """The model allows no such step."""

    def __init__(self, line: str, why: str) -> None:
        super().__init__(f"{why}\n  at: {line}")
        self.line = line


@dataclass(frozen=True)
class Step:
    """One line of the trace, read."""

    line: str
    machine_id: int
    event: str
    state_from: str
    state_to: str
    fence: int
    agent_id: str
    at_ms: int
    id: int


def replay(lines: Iterable[str], *, ended: bool = False) -> None:
    """Every line in its order, machine request by machine request. `ended`: each request must have come to its end."""
    steps = order_steps([parse_step(line) for line in lines if line.strip()])
    with tempfile.TemporaryDirectory(prefix="nimbus-replay-") as name:
        folder = Path(name)
        for part in FOLDER.glob("*.pml"):
            shutil.copy(part, folder)
        (folder / "trace_steps.pml").write_text(render_steps(steps, ended=ended))
        argv = ("spin", "-B", "trace.pml")  # nothing in it is left to choice: one run is every run
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    numbers = re.findall(r"step (-?\d+)$", done.stdout, flags=re.MULTILINE)
    if numbers and int(numbers[-1]) == -1:
        return
    if not numbers:
        raise RuntimeError(f"spin could not replay the trace: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    why = re.search(r"text of failed assertion: (.*)", done.stdout + done.stderr)
    raise Refused(steps[int(numbers[-1])].line, f"the model demands {why[1]}" if why else "no such step in the model")


def parse_step(line: str) -> Step:
    """One JSON line. A word that is none of ours is refused here already."""
    told = json.loads(line)
    event, states = str(told["event"]), (told.get("state_from"), told.get("state_to"))
    if event not in _WORDS or any(state not in _STATES for state in states if state is not None):
        raise Refused(line, "this event or state is none of the protocol's")
    if not 0 <= told["fence"] < FENCES:
        raise Refused(line, f"a fence is between 0 and {FENCES - 1}")
    return Step(
        line.strip(),
        told["machine_id"],
        event,
        states[0] or MachineState.QUEUED,
        states[1] or MachineState.QUEUED,
        told["fence"],
        told.get("agent_id") or "",
        told["at_ms"],
        told.get("id", 0),
    )


def order_steps(steps: list[Step]) -> list[Step]:
    """Machine by machine; the control plane's events by their id, a host's by time between them."""
    times: dict[int, int] = {}
    ordered = []
    for step in sorted(steps, key=lambda step: step.id):
        at_ms = step.at_ms
        if step.id:  # a database's clock that went back must not turn its events round
            at_ms = times[step.machine_id] = max(at_ms, times.get(step.machine_id, 0))
        ordered.append(((step.machine_id, at_ms, _RANK.get(step.event, 1), step.id), step))
    return [step for _, step in sorted(ordered, key=lambda pair: pair[0])]


def render_steps(steps: list[Step], *, ended: bool) -> str:
    """Pure: the body of trace.pml's process, one statement for each step."""
    agents = {name: number for number, name in enumerate(sorted({step.agent_id for step in steps} - {""}), start=1)}
    lines = []
    for number, step in enumerate(steps):
        is_first = number == 0 or steps[number - 1].machine_id != step.machine_id
        is_last = number + 1 == len(steps) or steps[number + 1].machine_id != step.machine_id
        if is_first and step.event != "queue":  # a trace that begins later than the request
            lines.append(f"steps ! {number}, QUEUE, QUEUED, QUEUED, 0, NOBODY;")
        lines.append(_render(number, step, agents))
        if is_last and ended:
            lines.append(f"steps ! {number}, ENDED, QUEUED, QUEUED, 0, NOBODY;")
    return "\n".join(lines) + "\n"


def _render(number: int, step: Step, agents: Mapping[str, int]) -> str:
    states = f"{_STATES[step.state_from]}, {_STATES[step.state_to]}"
    return f"steps ! {number}, {_WORDS[step.event]}, {states}, {step.fence}, {agents.get(step.agent_id, 'NOBODY')};"


def main() -> int:
    """Replay files of JSON lines together. Returns the exit status."""
    lines = [line for name in sys.argv[1:] for line in Path(name).read_text().splitlines()]
    try:
        replay(lines)
    except Refused as error:
        sys.stdout.write(f"replay: {error}\n")
        return 1
    sys.stdout.write(f"replay: {len(lines)} lines, each allowed by the model\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
