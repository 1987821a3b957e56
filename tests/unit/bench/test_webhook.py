"""The bodies and the judging of `make bench-webhook`; the rates themselves are not for tests."""

from __future__ import annotations

from pathlib import Path

from bench.webhook import BODIES, BODY_BYTES, judge, render_body, write_bodies
from bench.webhookhost import SECRET
from nimbus.wire.github import parse_workflow_job, verify_signature

GOOD = {"floor.per_s": [1000.0, 1200.0], "nimbus.per_s": [500.0, 600.0], "half.p99_ms": [20.0, 30.0]}


def broken(**changed: list[float]) -> list[str]:
    samples = {**GOOD, **{name.replace("__", "."): values for name, values in changed.items()}}
    return [bound.name for bound in judge(samples) if not bound.holds]


def test_a_run_within_all_bounds_breaks_none() -> None:
    assert broken() == []


def test_the_rate_is_judged_against_the_floor_of_the_same_run() -> None:
    assert broken(floor__per_s=[3000.0]) == ["accepted / bare insert, p50 of the rounds"]


def test_slow_answers_break_their_bound() -> None:
    assert broken(half__p99_ms=[51.0]) == ["p99 at half that rate, ms, p50 of the rounds"]


def test_every_body_is_an_event_of_the_promised_size_and_the_share_of_ours_is_kept() -> None:
    bodies = [render_body(number, 0.1) for number in range(900)]
    assert all(BODY_BYTES <= len(body) < BODY_BYTES + 200 for body in bodies)
    ours = sum("nimbus" in parse_workflow_job(body).labels for body in bodies)
    assert 60 <= ours <= 120


def test_the_file_holds_a_signature_that_is_believed_before_each_body(tmp_path: Path) -> None:
    write_bodies(tmp_path / "bodies", 0.1)
    lines = (tmp_path / "bodies").read_bytes().splitlines()
    assert len(lines) == BODIES
    for line in lines[::100]:
        signature, body = line.split(b"\t", 1)
        verify_signature((SECRET,), body, signature.decode())
