"""The waterfall: every phase of the line where its times are known, none invented where they are not."""

from __future__ import annotations

from nimbus.cli.waterfall import WIDTH, Phase, plan_waterfall, render_json, render_waterfall

ZERO = 1_760_000_000_000
JOB = {
    "created_at_ms": ZERO,
    "online_at_ms": ZERO + 2000,
    "started_at_ms": ZERO + 2100,
    "completed_at_ms": ZERO + 2600,
}
MACHINE = {
    "times_ms": {"webhook": ZERO + 5, "queued": ZERO + 10, "leased": ZERO + 20, "finished": ZERO + 3000},
    "phases": {
        "slot": 1.0,
        "network": 50.0,
        "disk": 4.0,
        "jail": 2.0,
        "vmm": 100.0,
        "kernel": 900.0,
        "init": 30.0,
        "guest": 2500.0,
        "teardown": 200.0,
        "total": 2980.0,
    },
}


def test_every_phase_of_the_line_is_there_in_order() -> None:
    phases = plan_waterfall(JOB, MACHINE)
    assert [phase.name for phase in phases] == [
        "webhook",
        "lease",
        "slot",
        "network",
        "disk",
        "jail",
        "VMM",
        "kernel",
        "guest ready",
        "runner online",
        "assignment",
        "job",
        "runner leaves",
        "teardown",
    ]
    begins = [phase.begin_ms for phase in phases]
    assert begins == sorted(begins)
    assert phases[-1] == Phase("teardown", 2800.0, 200.0)
    assert phases[9] == Phase("runner online", 1107.0, 893.0)


def test_unknown_times_are_left_out() -> None:
    machine = {"times_ms": {"queued": ZERO + 10, "leased": None}, "phases": None}
    job = {"created_at_ms": ZERO, "online_at_ms": None, "started_at_ms": None, "completed_at_ms": None}
    assert [phase.name for phase in plan_waterfall(job, machine)] == ["webhook"]
    assert plan_waterfall({}, {}) == ()
    assert render_waterfall(()) == "no times are known"


def test_clocks_that_disagree_give_no_negative_bar() -> None:
    phases = plan_waterfall({**JOB, "online_at_ms": ZERO + 1000}, MACHINE)
    assert min(phase.took_ms for phase in phases) == 0.0


def test_bars_share_one_scale_and_stay_inside_the_picture() -> None:
    rows = render_waterfall([Phase("a", 0, 500), Phase("b", 500, 500), Phase("c", 999, 1)]).splitlines()
    bars = [row[34:] for row in rows[1:4]]
    assert bars[0] == "█" * (WIDTH // 2)
    assert bars[1] == " " * (WIDTH // 2) + "█" * (WIDTH // 2)
    assert bars[2].strip() == "▏"
    assert max(len(bar) for bar in bars) <= WIDTH
    assert rows[-1].split() == ["total", "1000"]


def test_json_rows_carry_name_begin_and_duration() -> None:
    assert render_json([Phase("a", 1.26, 2.0)]) == [{"phase": "a", "at_ms": 1.3, "took_ms": 2.0}]
