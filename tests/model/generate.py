"""Writes tests/model/lease_tables.pml from nimbus/model/lease.py: `.venv/bin/python -m tests.model.generate`.

States, events, steps and the ratio of margin to lifetime come from the code, so that the model cannot speak of
another protocol. test_model.py compares; nothing else is generated.
"""

from __future__ import annotations

from pathlib import Path

from nimbus.model.lease import TERMINAL, TRANSITIONS, LeasePolicy, MachineEvent, MachineState

TABLES = Path(__file__).parent / "lease_tables.pml"
TTL_TICKS = 4  # the fewest in which the widest margin that a policy allows, a quarter, is a whole tick
SECOND_NS = 10**9


def render_tables() -> str:
    """Pure: the whole file."""
    wide = LeasePolicy(ttl_s=TTL_TICKS, margin_s=TTL_TICKS)  # the policy narrows this margin to what it allows
    hold_ticks, rest_ns = divmod(wide.deadline_ns(0, TTL_TICKS), SECOND_NS)
    if rest_ns:
        raise ValueError(f"a lease of {TTL_TICKS} ticks has a margin that is no whole number of ticks")
    lines = [
        "/* written by tests/model/generate.py from nimbus/model/lease.py: change that, and run it again */",
        "",
        f"#define TTL {TTL_TICKS} /* ticks that a lease lasts on the control plane's clock */",
        f"#define MARGIN {TTL_TICKS - hold_ticks} /* ticks by which its holder stops earlier */",
        "",
        *(f"#define {state.name} {number}" for number, state in enumerate(MachineState)),
        f"#define ILLEGAL {len(MachineState)}",
        "",
        *(f"#define {event.name} {number}" for number, event in enumerate(MachineEvent)),
        f"#define EVENTS {len(MachineEvent)}",
        "",
        f"#define TERMINAL(state) ({' || '.join(f'(state) == {s.name}' for s in MachineState if s in TERMINAL)})",
        "",
        "#define NEXT(state, event) ( \\",
        *(
            f"    ((state) == {state.name} && (event) == {event.name}) -> {target.name} : ( \\"
            for (state, event), target in TRANSITIONS.items()
        ),
        f"    ILLEGAL {')' * len(TRANSITIONS)})",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLES.write_text(render_tables())
