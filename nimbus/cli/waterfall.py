"""Where the milliseconds of one job went, from GitHub's event to the empty host, as rows of a picture.

Pure: takes what GitHub's side (the sim's run report) and the control plane (the machine's row) tell, gives text.
Called by `nimbus demo`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WIDTH = 44  # of the picture, so that a row fits into 80 columns
_BAR = "█"
_SLIVER = "▏"  # for what is too short for one column
# On the host, one after another from the lease on; what the ledger's own spans are called.
_HOST_PHASES = (("slot", "slot"), ("network", "network"), ("disk", "disk"), ("jail", "jail"), ("VMM", "vmm"))
_GUEST_PHASES = (("kernel", "kernel"), ("guest ready", "init"))


@dataclass(frozen=True)
class Phase:
    """One bar: from when, for how long."""

    name: str
    begin_ms: float
    took_ms: float


def plan_waterfall(job: Mapping[str, object], machine: Mapping[str, object]) -> tuple[Phase, ...]:
    """The phases of one job whose times are known, in the order of the line; time 0 is GitHub's event."""
    zero = _number(job, "created_at_ms")
    times, spans = _mapping(machine, "times_ms"), _mapping(machine, "phases")
    if zero is None:
        return ()
    moments = {name: at - zero for name in ("webhook", "queued", "leased", "finished") if (at := _number(times, name))}
    told = {name: at - zero for name in ("online", "started", "completed") if (at := _number(job, f"{name}_at_ms"))}
    rows = [
        _between("webhook", 0.0, moments.get("queued")),
        _between("lease", moments.get("queued"), moments.get("leased")),
    ]
    ready = moments.get("leased")
    if ready is not None:
        for name, span in (*_HOST_PHASES, *_GUEST_PHASES):
            took = _number(spans, span)
            if took is not None:
                rows.append(Phase(name, ready, took))
                ready += took
    rows.append(_between("runner online", ready, told.get("online")))
    rows.append(_between("assignment", told.get("online"), told.get("started")))
    rows.append(_between("job", told.get("started"), told.get("completed")))
    teardown, finished = _number(spans, "teardown"), moments.get("finished")
    if teardown is not None and finished is not None:
        rows.append(_between("runner leaves", told.get("completed"), finished - teardown))
        rows.append(Phase("teardown", finished - teardown, teardown))
    return tuple(row for row in rows if row is not None)


def render_waterfall(phases: Sequence[Phase], width: int = WIDTH) -> str:
    """A row for each phase: name, begin, duration, bar on one common scale."""
    if not phases:
        return "no times are known"
    end_ms = max(phase.begin_ms + phase.took_ms for phase in phases)
    rows = [f"{'phase':<15}{'at ms':>8}{'took ms':>9}"]
    rows += [
        f"{p.name:<15}{p.begin_ms:>8.0f}{p.took_ms:>9.0f}  {_render_bar(p, end_ms, width)}".rstrip() for p in phases
    ]
    rows.append(f"{'total':<15}{'':>8}{end_ms:>9.0f}")
    return "\n".join(rows)


def render_json(phases: Iterable[Phase]) -> list[dict[str, object]]:
    return [{"phase": p.name, "at_ms": round(p.begin_ms, 1), "took_ms": round(p.took_ms, 1)} for p in phases]


def _render_bar(phase: Phase, end_ms: float, width: int) -> str:
    scale = width / end_ms if end_ms > 0 else 0.0
    begin = min(max(0, round(phase.begin_ms * scale)), width - 1)
    length = min(round(phase.took_ms * scale), width - begin)
    return " " * begin + (_BAR * length if length > 0 else _SLIVER)


def _between(name: str, begin_ms: float | None, end_ms: float | None) -> Phase | None:
    if begin_ms is None or end_ms is None:
        return None
    return Phase(name, begin_ms, max(0.0, end_ms - begin_ms))


def _number(values: Mapping[str, object], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mapping(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}
