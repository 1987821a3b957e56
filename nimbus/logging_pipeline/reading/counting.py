"""GET /logs/jobs/<id>/counts and /logs/counts: how much was printed, by level, stream, step and job. For reports.

Every line counts once, however often it is stored. Called by app.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from quart import Blueprint, Response

from nimbus.logging_pipeline.reading.answers import answer
from nimbus.logging_pipeline.reading.filtering import read_filter, require_wide_enough
from nimbus.logging_pipeline.reading.scopes import ask_for_job, read_number, scope_of
from nimbus.logging_pipeline.reading.searching import find_search_scope
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.store.counts import MachineSum, StepSum, plan_machine_sums, plan_step_sums

DEFAULT_JOBS, MAX_JOBS = 20, 1000
_MAX_STEPS = 1000


def build_count_api(services: Services) -> Blueprint:
    """The counts."""
    blueprint = Blueprint("counts", __name__)

    @blueprint.get("/logs/jobs/<job>/counts")
    async def job_counts(job: str) -> Response:
        reader = services.access.read_reader()
        scope = scope_of(await ask_for_job(services, reader, job)())
        plan = plan_step_sums(services.table.name, scope, read_filter())
        async with services.turns.take(scope.org_id):
            sums = await services.table.read(plan, StepSum, services.bounds)
        return answer(total(sums) | {"by_step": by_step(sums)})

    @blueprint.get("/logs/counts")
    async def org_counts() -> Response:
        scope = await find_search_scope(services, services.access.read_reader())
        wanted, most = read_filter(), read_number("limit", DEFAULT_JOBS, MAX_JOBS)
        require_wide_enough(wanted.phrase)
        plan = plan_machine_sums(services.table.name, scope, wanted)
        async with services.turns.take(scope.org_id):
            sums = await services.table.read(plan, MachineSum, services.bounds)
        return answer(total(sums) | {"jobs": by_job(sums, most)})

    return blueprint


def total(sums: Sequence[StepSum] | Sequence[MachineSum]) -> dict[str, object]:
    """The sum of all."""
    levels, streams = Counter[str](), Counter[str]()
    for each in sums:
        levels[each.level] += each.lines
        streams[each.stream] += each.lines
    return {
        "lines": sum(each.lines for each in sums),
        "bytes": sum(each.bytes for each in sums),
        "first_ms": min((each.first_ms for each in sums), default=None),
        "last_ms": max((each.last_ms for each in sums), default=None),
        "by_level": dict(levels),
        "by_stream": dict(streams),
    }


def by_step(sums: Sequence[StepSum]) -> list[dict[str, object]]:
    """The first steps, in their order."""
    steps: defaultdict[int, list[StepSum]] = defaultdict(list)
    for each in sums:
        steps[each.step].append(each)
    return [{"step": step} | total(steps[step]) for step in sorted(steps)[:_MAX_STEPS]]


def by_job(sums: Sequence[MachineSum], most: int) -> list[dict[str, object]]:
    """The jobs that printed most. Machines whose job is not known yet are nobody's."""
    jobs: defaultdict[int, list[MachineSum]] = defaultdict(list)
    for each in sums:
        if each.job_id:
            jobs[each.job_id].append(each)
    lines = {job: sum(each.lines for each in found) for job, found in jobs.items()}
    top = sorted(jobs, key=lambda job: (-lines[job], job))[:most]
    return [{"job_id": job, "repo_id": jobs[job][0].repo_id or None} | total(jobs[job]) for job in top]
