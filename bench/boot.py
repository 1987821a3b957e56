"""`make bench-boot`: from a lease to a ready guest, against the bare VMM, in interleaved samples of one run.

Ready means the guest's first hello that says `prepared`: its randomness, clock and machine id are its own. Measured are
the floor (the bare VMM, cold and from the same template) and the agent: cold, restored with nothing made ahead, with
slots made ahead, with a VMM that waits (prespawned) and with a paused clone (warm). What counts are ratios within the
run; milliseconds are judged only where KVM is hardware. Run as root, on a host that is not busy.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from bench.boothost import POOLED, BootHost, open_boot_host, read_steps
from bench.bootmemory import measure_memory
from bench.frame import Bound, Samples, finish, interleave, percentile, render_table, summarise
from nimbus.cli.events import quiet_events
from nimbus.host.kvm import KvmVerdict, find_kvm
from nimbus.host_agent.settings import HostSettings, find_host
from nimbus.model.errors import NimbusError

SAMPLES, COLD = 200, 30
CROWDS = (4, 10)
CROWD_ROUNDS = 5
FLOORS = ("raw_cold", "raw_restored")
AGENT = ("cold", "restored", *POOLED)
COLDS = ("raw_cold", "cold")
AIM_MS = 100.0


@dataclass
class Found:
    """All that was measured."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    phases: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # by kind, by phase

    def note_phases(self, kind: str, phases: Mapping[str, float]) -> None:
        mine = self.phases.setdefault(kind, {})
        for name, ms in phases.items():
            mine.setdefault(name, []).append(ms)

    def p50(self, name: str) -> float:
        return percentile(self.samples[name], 50)

    def phases_p50(self) -> dict[str, dict[str, float]]:
        return {
            kind: {name: round(statistics.median(values), 1) for name, values in phases.items()}
            for kind, phases in self.phases.items()
        }


async def measure(host: BootHost, kind: str, at_once: int, found: Found | None) -> list[dict[str, float]]:
    """Milliseconds of each machine of one round of this kind."""
    if kind in FLOORS:
        steps = await host.measure_floor(cold=kind in COLDS, at_once=at_once)
        if found is not None:
            for step in steps:
                found.note_phases(kind, step)
        return [{"ready_ms": step["ready"]} for step in steps]
    outcomes = await host.measure_agent(kind, at_once=at_once)
    if found is not None:
        for outcome in outcomes:
            found.note_phases(kind, outcome.phases_ms)
    return [
        {f"{name}_ms": ms for name, ms in read_steps(outcome).items() if name in {"ready", "own"}}
        for outcome in outcomes
    ]


def measure_alone(host: BootHost, found: Found, words: argparse.Namespace) -> None:
    """One machine at a time, all kinds in turn; the cold ones, which take seconds, in some rounds only."""
    every = max(1, words.samples // max(1, words.cold))
    over = time.monotonic() + words.minutes * 60

    def one(kind: str, calls: list[None]) -> Mapping[str, float]:
        calls.append(None)
        number = len(calls) - 1  # the first is thrown away
        if time.monotonic() > over or (kind in COLDS and (number % every or number // every > words.cold)):
            return {}
        kept = found if number else None
        return trio.from_thread.run(measure, host, kind, 1, kept)[0]

    kinds: dict[str, Callable[[], Mapping[str, float]]] = {kind: partial(one, kind, []) for kind in (*FLOORS, *AGENT)}
    found.samples |= interleave(kinds, words.samples)


async def measure_crowds(host: BootHost, found: Found, rounds: int) -> None:
    """The same for several whose leases come at one moment."""
    for at_once in CROWDS:
        for number in range(rounds):
            print(f"  {at_once} at once, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for kind in ("raw_restored", "restored", *POOLED):
                for taken in await measure(host, kind, at_once, None):
                    for name, ms in taken.items():
                        found.samples.setdefault(f"{kind}_{at_once}.{name}", []).append(ms)


def judge(found: Found, memory: Mapping[str, float]) -> list[Bound]:
    """Pure: the promises of the issue."""
    raw = found.p50("raw_restored.ready_ms")
    own = found.samples["slots.own_ms"]
    return [
        Bound("restored with slots / raw restored, p50", found.p50("slots.ready_ms") / raw, 1.15),
        Bound("restored / raw restored, p50", found.p50("restored.ready_ms") / raw, 1.5),
        Bound("agent's own share with slots, ms, p50", percentile(own, 50), 15),
        Bound("agent's own share with slots, ms, p99", percentile(own, 99), 40),
        Bound("cold / restored with slots, p50", found.p50("cold.ready_ms") / found.p50("slots.ready_ms"), 5, True),
        Bound("prespawned / raw restored, p50", found.p50("prespawned.ready_ms") / raw, 0.80),
        Bound("warm / raw restored, p50", found.p50("warm.ready_ms") / raw, 0.30),
        Bound("a clone's dirty memory / the template's", memory["clone_dirty_mib"] / memory["template_mib"], 0.30),
    ]


def judge_hardware(found: Found) -> list[Bound]:
    """Pure: milliseconds, where KVM is hardware."""
    ready = found.samples["slots.ready_ms"]
    return [
        Bound("restored with slots, ms, p50, on hardware KVM", percentile(ready, 50), 50),
        Bound("restored with slots, ms, p99, on hardware KVM", percentile(ready, 99), 100),
    ]


def render_kinds(samples: Samples) -> str:
    """Milliseconds to ready, by kind and crowd, beside the floor's of the same crowd."""
    rows = []
    for crowd in ("", *(f"_{at_once}" for at_once in CROWDS)):
        for kind in (*FLOORS, *AGENT):
            values = samples.get(f"{kind}{crowd}.ready_ms")
            if not values:
                continue
            s, floor = summarise(values), percentile(samples[f"raw_restored{crowd}.ready_ms"], 50)
            label = f"{kind}, {crowd[1:]} at once" if crowd else kind
            numbers = (f"{ms:.1f}" for ms in (s.p50, s.p95, s.p99, s.max))
            rows.append([label, str(s.count), *numbers, f"{s.p50 / floor:.2f}"])
    return render_table(["ready, ms", "n", "p50", "p95", "p99", "max", "/ raw restored"], rows)


def render_phases(phases: Mapping[str, Mapping[str, float]]) -> str:
    """The median of each phase, by kind."""
    kinds = [kind for kind in (*FLOORS, *AGENT) if kind in phases]
    names: dict[str, None] = {}
    for kind in kinds:
        names |= dict.fromkeys(phases[kind])
    rows = [[name, *(f"{phases[kind][name]:.1f}" if name in phases[kind] else "" for kind in kinds)] for name in names]
    return render_table(["phase, ms, p50", *kinds], rows)


async def measure_all(words: argparse.Namespace) -> tuple[Found, Mapping[str, float], dict[str, object]]:
    settings = HostSettings(vmm=words.backend, accel=words.accel)
    found = Found()
    async with open_boot_host(find_host(settings), max(CROWDS)) as host:
        facts: dict[str, object] = {
            "backend": host.host.choice.label,
            "floor_argv": host.plan_floor(host.lanes[0], cold=False)["argv"],
            "load_before": os.getloadavg(),
        }
        await trio.to_thread.run_sync(measure_alone, host, found, words)
        await measure_crowds(host, found, words.crowds)
        memory = await measure_memory(host)
        return found, memory, facts | {"load_after": os.getloadavg(), "phases_p50_ms": found.phases_p50(), **memory}


def find_obstacle(backend: str, verdict: KvmVerdict) -> str:
    """Pure: why that backend cannot be measured here; empty where it can."""
    if backend == "firecracker":
        return (
            f"/dev/kvm is {verdict} here, and Firecracker boots Linux on hardware KVM alone"
            if verdict is not KvmVerdict.HARDWARE
            else "its bare floor is not written: tests/firecracker drives the real one with a guest of its own"
        )
    return ""


def parse_words(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["qemu", "firecracker"], default="qemu")
    parser.add_argument("--accel", choices=["auto", "tcg", "kvm"], default="auto")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each kind but the cold ones")
    parser.add_argument("--cold", type=int, default=COLD, help="cold samples")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no more single samples after that")
    parser.add_argument("--crowds", type=int, default=CROWD_ROUNDS, help="rounds of 4 and of 10 at once")
    return parser.parse_args(words)


def main() -> int:
    """Measure, write, judge."""
    words = parse_words()
    if os.geteuid() != 0:
        sys.exit("bench-boot boots VMs on taps of its own: run it as root")
    quiet_events()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # so that nothing is left
    kvm = find_kvm(HostSettings().runtime_dir)
    if obstacle := find_obstacle(words.backend, kvm.verdict):
        sys.exit(f"--backend {words.backend} is not measured: {obstacle}")
    try:
        found, memory, facts = trio.run(measure_all, words)
    except* NimbusError as group:
        sys.exit(f"bench-boot came to no end: {group.exceptions}")
    bounds = judge(found, memory)
    if kvm.verdict is KvmVerdict.HARDWARE:
        bounds += judge_hardware(found)
    print(render_kinds(found.samples), end="\n\n")
    print(render_phases(found.phases_p50()), end="\n\n")
    aim = found.p50("prespawned.ready_ms")
    print(f"prespawned, ready at p50: {aim:.1f} ms; the aim, no bound, is {AIM_MS:g} ms")
    print(", ".join(f"{name} {value:.1f}" for name, value in memory.items()), end="\n\n")
    plotted = [f"{kind}.ready_ms" for kind in ("raw_restored", "restored", *POOLED)]
    return finish("boot", found.samples, bounds, facts={**facts, "kvm": str(kvm.verdict)}, plotted=plotted)


if __name__ == "__main__":
    sys.exit(main())
