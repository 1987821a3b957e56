"""What every bench shares: interleaved samples, percentiles, bounds, a table, a plot, one result file.

A bench is a module with `main()` that ends in `finish(...)`: it writes `bench/results/NAME.json` with `samples` and
`bounds`, prints both as tables, and gives the exit status 1 where a bound does not hold. Imports nothing of nimbus.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SHOW_EVERY_S = 2.0


@dataclass(frozen=True)
class Bound:
    """A promise as a number: `value` must not be above `bound` (or below it, where `at_least`)."""

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True)
class Summary:
    """A series in a few numbers."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


Samples = Mapping[str, Sequence[float]]


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between the two nearest ranks, as numpy and PostgreSQL do it."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def summarise(values: Sequence[float]) -> Summary:
    return Summary(
        len(values), percentile(values, 50), percentile(values, 95), percentile(values, 99), max(values, default=0.0)
    )


def interleave(
    measures: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int, *, warmup: int = 1, seed: int = 1
) -> dict[str, list[float]]:
    """Samples of all measures, each round in another order, so that a drift of the machine meets all alike.

    A measure gives named numbers; they are kept as `MEASURE.NUMBER`. The first `warmup` rounds are thrown away.
    """
    order = random.Random(seed)  # noqa: S311 - the same order each time, on purpose
    names = list(measures)
    samples: dict[str, list[float]] = {}
    began = shown = time.monotonic()
    for number in range(warmup + rounds):
        order.shuffle(names)
        for name in names:
            taken = measures[name]()
            if number >= warmup:
                for key, value in taken.items():
                    samples.setdefault(f"{name}.{key}", []).append(value)
            if time.monotonic() - shown > SHOW_EVERY_S:
                shown = time.monotonic()
                print(f"  round {number + 1} of {warmup + rounds}, {shown - began:.0f} s", file=sys.stderr, flush=True)
    return samples


def describe_machine() -> dict[str, object]:
    """Enough to know whether two results may be compared."""
    model = "unknown"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def render_samples(samples: Samples) -> str:
    rows = []
    for name, values in sorted(samples.items()):
        s = summarise(values)
        rows.append([name, str(s.count), *(f"{number:.2f}" for number in (s.p50, s.p95, s.p99, s.max))])
    return render_table(["samples", "n", "p50", "p95", "p99", "max"], rows)


def render_bounds(bounds: Sequence[Bound]) -> str:
    rows = [
        [b.name, f"{b.value:.3f}", f"{'>=' if b.at_least else '<='} {b.bound:g}", "holds" if b.holds else "BROKEN"]
        for b in bounds
    ]
    return render_table(["bound", "value", "limit", ""], rows)


def render_result(name: str, samples: Samples, bounds: Sequence[Bound], facts: Mapping[str, object]) -> str:
    body = {
        "name": name,
        "taken_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine(),
        "facts": dict(facts),
        "bounds": [{"name": b.name, "value": round(b.value, 6), "bound": b.bound, "holds": b.holds} for b in bounds],
        "summary": {key: asdict(summarise(values)) for key, values in sorted(samples.items())},
        "samples": {key: [round(value, 4) for value in values] for key, values in sorted(samples.items())},
    }
    return json.dumps(body, indent=1) + "\n"


def plot(path: Path, title: str, samples: Samples, unit: str) -> None:
    """All series as empirical distributions: one look shows shift, spread and outliers."""
    import matplotlib as mpl  # late: a second, and only when a plot is drawn

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "nimbus"  # the same samples give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, values in sorted(samples.items()):
        ordered = sorted(values)
        axes.step(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], where="post", label=name)
    axes.set(title=title, xlabel=unit, ylabel="share of samples", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def finish(
    name: str,
    samples: Samples,
    bounds: Sequence[Bound],
    *,
    facts: Mapping[str, object] | None = None,
    plotted: Sequence[str] = (),
    unit: str = "ms",
    results: Path = RESULTS,
) -> int:
    """Write, print, judge: the exit status of the bench."""
    results.mkdir(parents=True, exist_ok=True)
    target = results / f"{name}.json"
    draft = target.with_suffix(".tmp")
    draft.write_text(render_result(name, samples, bounds, facts or {}))
    draft.replace(target)
    shown = {key: samples[key] for key in plotted if samples.get(key)}
    if shown:
        plot(results / f"{name}.svg", name, shown, unit)
    print(render_samples(samples))
    print()
    print(render_bounds(bounds))
    print(f"\nwritten: {target}")
    return 0 if all(bound.holds for bound in bounds) else 1
