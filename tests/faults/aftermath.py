"""What a storm leaves: gathers all that was seen, has it judged and replayed, renders the table. Called by storm.py."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.fleet import Agent, Fleet
from tests.acceptance.stack import LIMIT_S, Json, find_leaks
from tests.faults.marks import read_runs
from tests.faults.raging import Storm
from tests.faults.reckoning import Evidence, Reckoning, reckon, render_vm_lines
from tests.model import replay
from tests.services import PostgresServer

SHOWN = 40  # of what is wrong: one cause may have many
OUTPUT_S = 60.0  # for what is still on its way to the store


@dataclass
class Found:
    """What a storm ends with."""

    storm: Storm
    reckoning: Reckoning
    replayed: int
    adoptions: int
    leaks: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(victim.kills for victim in self.storm.victims)

    @property
    def talking(self) -> int:
        """Jobs whose whole output must be stored."""
        return sum(plan.talks and plan.ends_by_itself for plan in self.storm.plans)

    @property
    def good(self) -> bool:
        told = self.reckoning
        return not (told.wrong or told.lost or told.doubles or self.leaks)


def stop_and_look(agent: Agent) -> list[str]:
    """End an agent in good order; whatever of its VMs is on the host then."""
    if agent.is_running():
        agent.stop(signal.SIGINT)
    spools = [f"spool {path.name}" for path in agent.layout.spools.glob("*")]
    return [*map(str, find_leaks(agent.state)), *spools]


def judge(storm: Storm, server: PostgresServer, dsn: str, folder: Path, ttl_s: float) -> Found:
    """Gather, reckon, and let the model replay."""
    steps = read_steps(storm.fleet, server, dsn)
    seen = Evidence(
        storm.plans,
        storm.jobs,
        steps,
        read_runs(storm.marks),
        [outage for victim in storm.victims for outage in victim.outages],
        read_outputs(storm),
        ttl_s,
    )
    told = reckon(seen)
    told.wrong += [line for victim in storm.victims for line in (*victim.died, *victim.tell_errors())]
    lines = [json.dumps(line) for line in (*steps, *render_vm_lines(seen))]
    (folder / "trace.jsonl").write_text("".join(f"{line}\n" for line in lines))
    try:
        replay.replay(lines, ended=True)
    except replay.Refused as error:
        told.wrong.append(f"the model does not allow what happened: {error}")
    adoptions = sum(len(victim.events("vm.adopted")) for victim in storm.victims)
    return Found(storm, told, len(lines), adoptions)


def read_steps(fleet: Fleet, server: PostgresServer, dsn: str) -> list[Json]:
    """The control plane's own trace, and beside each step its cause, which stands in the database alone."""
    argv = [sys.executable, "-m", "nimbus.control_plane.trace"]
    told = subprocess.run(argv, env=fleet.plane.env, capture_output=True, check=True, timeout=LIMIT_S).stdout
    query = "SELECT json_object_agg(event_id, cause) FROM machine_events"
    psql = [str(server.bin / "psql"), "-AtX", dsn, "-c", query]
    causes = json.loads(subprocess.run(psql, capture_output=True, check=True, timeout=LIMIT_S).stdout or "{}") or {}
    return [{**step, "cause": causes.get(str(step["id"]))} for step in map(json.loads, told.splitlines())]


def read_outputs(storm: Storm) -> dict[int, dict[int, list[str]]]:
    """What each run of each talking job printed; looked at again until no last one lacks a line, or time is over."""
    deadline = time.monotonic() + OUTPUT_S
    found: dict[int, dict[int, list[str]]] = {}
    for plan in storm.plans:
        job = storm.jobs.get(plan.number, {})
        if not (plan.talks and job.get("machines")):
            continue
        machine_id, last = (job["machines"][0][name] for name in ("machine_id", "fence"))
        outputs = {fence: storm.office.output(machine_id, fence) or [] for fence in range(1, last + 1)}
        while plan.ends_by_itself and len(outputs[last]) < len(plan.output) and time.monotonic() < deadline:
            time.sleep(0.1)
            outputs[last] = storm.office.output(machine_id, last) or []
        found[plan.number] = outputs
    return found


def render_table(found: Found) -> list[str]:
    """Pure: what was seen, for people."""
    told, storm = found.reckoning, found.storm
    kills = ", ".join(f"{victim.name} {victim.kills}" for victim in storm.victims)
    away = [outage.to_s - outage.from_s for victim in storm.victims for outage in victim.outages]
    rows = [
        ("seed", str(storm.order.seed)),
        ("took", f"{storm.took_s:.0f} s"),
        ("jobs by their end", _count(told.endings)),
        ("leases a job needed", _count(told.attempts)),
        ("kills", kills),
        ("away", f"{min(away, default=0):.1f} to {max(away, default=0):.1f} s"),
        ("machines adopted", str(found.adoptions)),
        ("leases to no end", _count(told.reasons) or "none"),
        ("shortest silence that cost a lease", f"{min(told.silences_s):.1f} s" if told.silences_s else "none"),
        ("ends that nobody heard in time", _count(told.run_again) or "none"),
        ("whole outputs in the store", f"{told.whole_outputs} of {found.talking}"),
        ("double runs", str(len(told.doubles))),
        ("trace steps replayed", str(found.replayed)),
        ("leaks", str(len(found.leaks))),
    ]
    width = max(len(name) for name, _ in rows)
    wrong = [f"WRONG {line}" for line in (*told.doubles, *found.leaks, *told.wrong)][:SHOWN]
    return [*(f"  {name:<{width}}  {value}" for name, value in rows), *wrong]


def _count(counted: Mapping[str, int] | Mapping[int, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counted.items(), key=lambda each: str(each[0])))


def summarize(found: Found) -> str:
    """Pure: the last line."""
    told = found.reckoning
    return (
        f"storm: {len(found.storm.plans)} jobs, {found.kills} kills, {len(told.lost)} lost,"
        f" {len(told.doubles)} double runs, {len(found.leaks)} leaks"
    )


def to_json(found: Found) -> Json:
    """Pure: the same for programs."""
    told, storm = found.reckoning, found.storm
    return {
        "seed": storm.order.seed,
        "backend": storm.order.backend,
        "took_s": round(storm.took_s, 1),
        "jobs": len(storm.plans),
        "kills": {victim.name: victim.kills for victim in storm.victims},
        "endings": told.endings,
        "attempts": told.attempts,
        "reasons": told.reasons,
        "unheard_ends": told.run_again,
        "adoptions": found.adoptions,
        "replayed": found.replayed,
        "lost": told.lost,
        "double_runs": told.doubles,
        "leaks": found.leaks,
        "wrong": told.wrong,
    }
