"""The lines of the sim's file: what is in them, what is not, and what is refused as somebody else's."""

from __future__ import annotations

import json

import pytest

from nimbus.model.job import JobState
from nimbus.sim.deliveries import Delivery
from nimbus.sim.jobs import Conclusion
from nimbus.sim.records import FORMAT, Header, Pen, parse_world
from tests.unit.sim.rig import Stage

HEADER = Header(FORMAT, "octo-org", 1_800_000_000_000)


def render(stage: Stage, *deliveries: Delivery) -> bytes:
    return Pen().render(HEADER, stage.forge.runners.values(), stage.forge.runs.values(), deliveries)


def lines(data: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in data.splitlines()]


def test_a_runner_s_token_is_kept_while_it_is_registered_and_in_no_line_afterwards() -> None:
    stage = Stage()
    job, runner = stage.running()
    running = render(stage)
    stage.forge.complete(runner, job.job_id, Conclusion.SUCCESS)
    assert runner.token.encode() in running
    assert runner.token.encode() not in render(stage)


def test_a_finished_job_still_names_its_runner() -> None:
    stage = Stage()
    job, runner = stage.running()
    stage.forge.complete(runner, job.job_id, Conclusion.FAILURE)
    again = parse_world(render(stage)).runs[0].jobs[0]
    assert again.runner is not None
    assert (again.runner.name, again.conclusion, again.history) == (runner.name, Conclusion.FAILURE, job.history)


def test_a_job_in_progress_and_its_runner_are_one_pair_again() -> None:
    stage = Stage()
    stage.running()
    recalled = parse_world(render(stage))
    [job], [runner] = recalled.runs[0].jobs, recalled.runners
    assert job.runner is runner
    assert runner.job is job
    assert job.run is recalled.runs[0]


def test_a_body_is_the_same_to_the_byte() -> None:
    body = json.dumps({"name": "Grüße \u2028 \x00"}, ensure_ascii=False).encode()
    sent = Delivery(9, "g", "workflow_job", None, body, 7, redelivery=True, delivered_at_s=1.5, status="OK")
    assert parse_world(render(Stage(), sent)).deliveries == [sent]


def test_a_line_that_is_remembered_is_the_one_that_would_be_written_anew() -> None:
    stage, pen = Stage(), Pen()
    job, runner = stage.running()
    delivery = Delivery(9, "g", "workflow_job", "queued", b"{}", 7)
    kept = [delivery]
    pen.render(HEADER, stage.forge.runners.values(), stage.forge.runs.values(), kept)
    stage.forge.complete(runner, job.job_id, Conclusion.SUCCESS)
    delivery.delivered_at_s = 2.0
    for _ in range(2):
        data = pen.render(HEADER, stage.forge.runners.values(), stage.forge.runs.values(), kept)
        assert data == render(stage, delivery)


def damaged() -> dict[str, bytes]:
    """Files that are not what the sim wrote, by what is wrong with them."""
    stage = Stage()
    stage.running()
    whole = render(stage)
    first, runner, run, _ = whole.splitlines(keepends=True)
    return {
        "nothing at all": b"",
        "torn at a line": whole[: whole.rindex(b'{"end"')],
        "torn in a line": whole[:-40],
        "a line is missing": first + run + b'{"end":3}\n',
        "no JSON": b"\x7fELF\x02\x01\x01\x00",
        "bytes that are no text": whole.replace(b"hello", b"\xff\xfe\xfd"),
        "deeper than anybody reads": b"[" * 100_000,
        "of another format": whole.replace(FORMAT.encode(), b"nimbus-sim/9"),
        "of another shape": first + b'{"run":{"run_id":"seven"}}\n{"end":2}\n',
        "a list": b"[]\n",
        "a job without its runner": first + run + b'{"end":2}\n',
        "two jobs on one runner": first + runner + run + run + b'{"end":4}\n',
        "an end without a conclusion": whole.replace(b'"in_progress"', b'"completed"', 1),
        "steps out of order": whole.replace(b'"number":2', b'"number":3'),
        "a state that nobody knows": whole.replace(b'"in_progress"', b'"asleep"', 1),
    }


@pytest.mark.parametrize("what", damaged())
def test_a_file_that_is_not_ours_is_refused_without_quoting_it(what: str) -> None:
    data = damaged()[what]
    with pytest.raises(ValueError, match=r"^[a-zA-Z0-9 ,/'-]+$") as refused:
        parse_world(data)
    assert "token" not in str(refused.value)


def test_the_undamaged_file_of_these_cases_is_read() -> None:
    stage = Stage()
    stage.running()
    assert parse_world(render(stage)).runs[0].jobs[0].state is JobState.IN_PROGRESS


def test_an_offer_is_not_kept() -> None:
    stage = Stage()
    job, runner = stage.job(), stage.online()
    assert job.offered_to is runner
    again = parse_world(render(stage))
    assert (again.runs[0].jobs[0].offered_to, again.runs[0].jobs[0].state) == (None, JobState.QUEUED)
    assert "offered_to" not in str(lines(render(stage)))


def test_what_the_previous_sim_wrote_is_read() -> None:
    stage = Stage()
    job, _ = stage.running()
    header = b'{"header":{"format":"nimbus-sim/1","owner":"octo-org","last_id":7,"suspended":true}}\n'
    previous = header + b"".join(render(stage).splitlines(keepends=True)[1:])
    recalled = parse_world(previous)
    assert (recalled.header.suspended, recalled.header.accounts) == (True, ())
    assert [each.job_id for each in recalled.runs[0].jobs] == [job.job_id]
    assert (recalled.runs[0].attempt, recalled.runs[0].jobs[0].attempt) == (1, 1)


def test_the_attempts_of_a_run_are_kept_apart() -> None:
    stage, pen = Stage(), Pen()
    job, runner = stage.running()
    stage.forge.complete(runner, job.job_id, Conclusion.FAILURE)
    pen.render(HEADER, stage.forge.runners.values(), stage.forge.runs.values(), [])
    run = stage.forge.rerun(job.run.run_id, failed_only=True)
    data = pen.render(HEADER, stage.forge.runners.values(), stage.forge.runs.values(), [])
    assert data == render(stage)
    again = parse_world(data).runs[0]
    assert [each.job_id for each in again.jobs_of(1)] == [job.job_id]
    assert [(each.job_id, each.attempt) for each in again.jobs_of(2)] == [(run.jobs[0].job_id, 2)]
