"""The judging of `make bench-control`; a small run of all of it stands in tests/acceptance/test_bench_control.py."""

from __future__ import annotations

from bench.control import judge

GOOD = {
    "floor.per_s": [1000.0, 1200.0], "leases.per_s": [600.0, 700.0], "http.per_s": [300.0, 320.0],
    "history.per_s": [590.0, 680.0], "polls.cpu_share": [0.05], "idle.cpu_share": [0.1], "wake.ms": [5.0, 9.0, 20.0],
    "woken.a_request": [1.0], "pass.ms": [1005.0, 300.0],
}  # fmt: skip


def broken(**changed: list[float]) -> list[str]:
    samples = {**GOOD, **{name.replace("__", "."): values for name, values in changed.items()}}
    return [bound.name for bound in judge(samples) if not bound.holds]


def test_a_run_within_all_bounds_breaks_none() -> None:
    assert broken() == []


def test_both_ways_are_judged_against_the_bare_statements_of_the_same_run() -> None:
    assert broken(floor__per_s=[2500.0]) == [
        "leases.py / bare SQL, cycles/s, p50 of rounds",
        "HTTP / bare SQL, cycles/s, p50 of rounds",
    ]


def test_a_history_that_slows_leases_down_breaks_its_bound() -> None:
    assert broken(history__per_s=[500.0]) == ["long history / none, cycles/s, p50 of rounds"]


def test_hosts_that_cost_much_while_they_wait_break_their_bound() -> None:
    assert broken(polls__cpu_share=[0.16]) == ["share of a core for hosts that wait, long polls alone"]
    assert broken(idle__cpu_share=[0.16]) == ["share of a core for hosts that wait, polls and heartbeats"]


def test_a_late_wake_a_second_one_and_an_offer_that_is_passed_on_late_each_break_a_bound() -> None:
    assert broken(wake__ms=[60.0], woken__a_request=[1.01], pass__ms=[300.0, 1300.0]) == [
        "submitted to granted, ms, p99",
        "agents woken for a request",
        "the same where the first one woken leases nothing, ms, max",
    ]
