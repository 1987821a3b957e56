"""Jobs of our own API, and the view of any job: submit, find, cancel, count.

Every read and write is scoped by the caller's org. Never shows a command or its environment: they may hold
secrets. Jobs that GitHub owns are written by demand.py. Called by jobs_api.py and by joblist.py, jobevents.py and
jobwait.py beside it, which find a job here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
import trio

from nimbus.control_plane.access import Caller
from nimbus.control_plane.jobs.submission import Submission, check_priority
from nimbus.control_plane.jobs.waiting import Wait, explain_waiting
from nimbus.control_plane.orgs.budget import give_back, take_job
from nimbus.control_plane.queue.endings import Teller
from nimbus.control_plane.queue.machines import MachineRequest, cancel_machine, queue_machine
from nimbus.control_plane.services import MACHINES, JobRules, Services
from nimbus.model.errors import Conflict, NotFound, Refused
from nimbus.model.job import JobSource, JobState
from nimbus.model.lease import TERMINAL, MachineState
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.leaseapi import MachineKind
from nimbus.wire.vmjson import Json, render_command, render_shape

log = structlog.get_logger()

_SQL = load_queries("nimbus.control_plane", "queries", "jobs.sql")
_NOT_BEGUN = frozenset({JobState.WAITING, JobState.QUEUED})
GIVE_BACK_S = 2.0
_ENDED = frozenset({JobState.COMPLETED, JobState.LOST})


@dataclass(frozen=True)
class Submitted:
    """The job of a submission; `created` is false where the idempotency key was known."""

    job_id: int
    machine_id: int
    state: JobState
    created: bool


async def submit_job(services: Services, submission: Submission, caller: Caller) -> Submitted:
    """Queue the submission for its org; the same idempotency key gives the same job."""
    if caller.org_id is not None and submission.org_id not in {None, caller.org_id}:
        raise NotFound(f"there is no org {submission.org_id}")
    check_priority(submission, caller.org_id)
    org_id = caller.org_id if caller.org_id is not None else submission.org_id
    found = await services.database.fetch(_SQL["look_up"], org_id, submission.idempotency_key)
    if not found:
        raise NotFound(f"there is no org {org_id}")
    submitted = await _submit_within_budget(services, submission, found[0], caller.subject)
    if submitted.created:
        log.info("job.submitted", job=submitted.job_id, machine_id=submitted.machine_id)
        await services.bell.ring(MACHINES)
    return submitted


async def _submit_within_budget(services: Services, submission: Submission, found: Row, subject: str) -> Submitted:
    """A repeat takes nothing of the org's budget, a refused one leaves nothing; what is not sure counts as used."""
    org_id: int = found["org_id"]
    taken = None if found["known"] else await take_job(services, org_id, found["line_s"])
    used = True
    try:
        submitted = await services.database.run(_submit, submission, org_id, subject, services.job_rules)
        used = submitted.created
    except Conflict:
        used = False
        raise
    finally:
        if taken is not None and not used:  # two of one key came at once
            with trio.move_on_after(GIVE_BACK_S, shield=True):
                await give_back(services, org_id, taken)
    return submitted


async def _submit(
    transaction: Transaction, submission: Submission, org_id: int, subject: str, rules: JobRules
) -> Submitted:
    command = render_command(submission.command)
    if submission.idempotency_key is not None:
        await transaction.execute(_SQL["lock_keys"], org_id)
        known = await transaction.fetchrow(_SQL["job_by_key"], org_id, submission.idempotency_key)
        if known is not None:
            return await _replay(transaction, known, submission)
    told = (submission.idempotency_key, submission.priority, tell_user(subject))
    job_id = await transaction.fetchval(_SQL["insert_job"], org_id, submission.name, command, *told)
    machine_id = await queue_machine(
        transaction,
        MachineRequest(
            org_id=org_id,
            kind=MachineKind.COMMAND,
            image=submission.image,
            shape=submission.shape,
            arch=submission.arch,
            job_id=job_id,
            command=submission.command,
            priority=submission.priority,
            aging_s=rules.aging_s,
        ),
    )
    return Submitted(job_id, machine_id, JobState.QUEUED, created=True)


async def _replay(transaction: Transaction, known: Row, submission: Submission) -> Submitted:
    machine = await transaction.fetchrow(_SQL["machine_of_job"], known["job_id"])
    asked = (render_command(submission.command), submission.image, render_shape(submission.shape), submission.arch)
    found = None if machine is None else (known["command"], machine["image"], machine["shape"], machine["arch"])
    if machine is None or asked != found or submission.priority != known["priority"]:
        raise Conflict("this idempotency key was used for another job: use a new key")
    return Submitted(known["job_id"], machine["machine_id"], JobState(known["state"]), created=False)


# --- views -------------------------------------------------------------------------------------------------------


async def find_job(services: Services, job_id: int, caller_org: int | None) -> Json:
    """One job by our id or the forge's; NotFound where the caller's org has none."""
    return await services.database.run(_find, job_id, caller_org, services.job_rules)


async def _find(transaction: Transaction, job_id: int, org_id: int | None, rules: JobRules) -> Json:
    [job] = await describe_jobs(transaction, [await require_job(transaction, job_id, org_id)], rules)
    return job


async def require_job(transaction: Transaction, job_id: int, org_id: int | None) -> Row:
    """The job's row, by our id or the forge's; NotFound where that org has none, or none has for no org."""
    row = await transaction.fetchrow(_SQL["find_job"], job_id, org_id)
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return row


async def describe_jobs(transaction: Transaction, jobs: Iterable[Row], rules: JobRules) -> list[Json]:
    """The jobs with their machines, and what those wait for that wait."""
    rows = list(jobs)
    waiting = [row["job_id"] for row in rows if row["state"] in _NOT_BEGUN]
    waits = await explain_waiting(transaction, waiting, rules)
    machines: dict[int, list[Json]] = {row["job_id"]: [] for row in rows}
    for machine in await transaction.fetch(_SQL["machines_of_jobs"], list(machines)):
        machines[machine["job_id"]].append(_render_machine(machine))
    return [
        {**_plain(row), **_render_wait(waits.get(row["job_id"])), "machines": machines[row["job_id"]]} for row in rows
    ]


def _render_wait(wait: Wait | None) -> Json:
    return {"waits_for": None if wait is None else wait.words}


def _render_machine(row: Row) -> Json:
    columns = {"webhook": "webhook_at", "queued": "created_at", "leased": "leased_at", "used": "usage_at"}
    times = {**columns, "finished": "finished_at"}
    times_ms = {name: None if row[key] is None else round(row[key].timestamp() * 1000) for name, key in times.items()}
    shown = {key: value for key, value in row.items() if key not in {"job_id", *times.values()}}
    return {**shown, "times_ms": times_ms}


def _plain(row: Row) -> Json:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


async def find_output(services: Services, job_id: int) -> Json:
    """Under which machines and fences a job's output was written; for the logging pipeline."""
    return await services.database.run(_find_output, job_id)


async def _find_output(transaction: Transaction, job_id: int) -> Json:
    row = await require_job(transaction, job_id, None)
    leases = await transaction.fetch(_SQL["leases_of_job"], row["job_id"])
    return {
        **{name: row[name] for name in ("job_id", "org_id", "repo_id", "state")},
        "machines": [{"machine_id": lease["machine_id"], "fence": lease["fence"]} for lease in leases],
    }


async def find_outputs(services: Services, job_ids: Sequence[int]) -> list[Json]:
    """The same for many jobs by our own ids, in two statements; those that do not exist are left out."""
    return await services.database.run(_find_outputs, list(job_ids))


async def _find_outputs(transaction: Transaction, job_ids: list[int]) -> list[Json]:
    leases: dict[int, list[Json]] = defaultdict(list)
    for row in await transaction.fetch(_SQL["leases_of_jobs"], job_ids):
        leases[row["job_id"]].append({"machine_id": row["machine_id"], "fence": row["fence"]})
    rows = await transaction.fetch(_SQL["jobs_with_output"], job_ids)
    return [{**dict(row), "machines": leases[row["job_id"]]} for row in rows]


async def count_queue(services: Services, caller_org: int | None) -> Mapping[str, object]:
    """How many machine requests and jobs stand in each state, and how long the oldest waits."""
    return await services.database.run(_count, caller_org)


async def _count(transaction: Transaction, org_id: int | None) -> Mapping[str, object]:
    machines = {state.value: 0 for state in MachineState}
    machines |= {row["state"]: row["machines"] for row in await transaction.fetch(_SQL["count_machines"], org_id)}
    jobs = {state.value: 0 for state in JobState}
    jobs |= {row["state"]: row["jobs"] for row in await transaction.fetch(_SQL["count_jobs"], org_id)}
    return {
        "machines": machines,
        "jobs": jobs,
        "oldest_queued_s": await transaction.fetchval(_SQL["oldest_queued"], org_id),
    }


# --- cancel ------------------------------------------------------------------------------------------------------


def tell_user(subject: str) -> str:
    """Pure: who made a step known, as rows keep it."""
    return f"user:{subject}"


async def cancel_job(services: Services, job_id: int, caller: Caller) -> Json:
    """Cancel a job of our own API, and say what happens; one that has ended stays as it is."""
    cancelled = await services.database.run(_cancel, job_id, caller)
    log.info("job.cancelled", job=cancelled["job_id"], by=caller.subject, state=cancelled["state"])
    return cancelled


async def _cancel(transaction: Transaction, job_id: int, caller: Caller) -> Json:
    row = await require_job(transaction, job_id, caller.org_id)
    if row["source"] == JobSource.GITHUB:
        raise Refused(f"job {job_id} belongs to GitHub: cancel its run there ({row['html_url'] or 'no address known'})")
    cause, ended = f"cancelled by {caller.subject}", True
    machines = await transaction.fetch(_SQL["machines_of_jobs"], [row["job_id"]])
    for machine in machines:
        state = await cancel_machine(transaction, machine["machine_id"], cause, Teller.USER)
        ended = ended and state in TERMINAL
    if ended:
        await transaction.execute(_SQL["cancel_job"], row["job_id"], cause, tell_user(caller.subject))
    now = await require_job(transaction, row["job_id"], caller.org_id)
    asked = any(machine["cancel_requested"] for machine in machines)
    told = {name: now[name] for name in ("job_id", "state", "conclusion")}
    return {**told, "happens": _tell_cancel(row["state"], now["state"], asked=asked)}


def _tell_cancel(before: str, after: str, *, asked: bool) -> str:
    """Pure: what comes of it, in a sentence."""
    if before in _ENDED:
        return "nothing: it had ended before"
    if after in _ENDED:
        return "it is cancelled: no host had begun it"
    if asked:
        return "its host is asked again to stop it: it was asked before"
    return "its host is asked to stop it, and does so when it next renews its lease"
