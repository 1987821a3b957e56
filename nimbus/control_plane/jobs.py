"""Jobs of our own API, and the view of all jobs: submit, find, list, cancel, count.

Every read and write is scoped by the caller's org. Never shows a command or its environment: they may hold
secrets. Jobs that GitHub owns are written by demand.py. Called by jobs_api.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from nimbus.control_plane.machines import MachineRequest, cancel_machine, queue_machine
from nimbus.control_plane.services import MACHINES, JobRules, Services
from nimbus.control_plane.waiting import explain_waiting
from nimbus.model.errors import Conflict, NotFound, RateLimited, Refused
from nimbus.model.job import JobSource, JobState
from nimbus.model.labels import Arch
from nimbus.model.lease import TERMINAL, MachineState
from nimbus.model.vm import Command, Shape
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import parse_object
from nimbus.wire.leaseapi import MachineKind
from nimbus.wire.vmjson import Json, render_command, render_shape

log = structlog.get_logger()

_SQL = load_queries("nimbus.control_plane", "queries", "jobs.sql")
_IMAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/:@-]{0,253}[A-Za-z0-9])?")
_FIELDS = frozenset(
    {"image", "argv", "cmd", "env", "cwd", "user", "timeout_s", "cpus", "mem_mib", "disk_mib", "idempotency_key"}
    | {"org_id", "name", "arch"}
)
_NOT_BEGUN = frozenset({JobState.WAITING, JobState.QUEUED})
_CANCEL_CAUSE = "cancelled by a user"
MAX_TIMEOUT_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Submission:
    """A command to run in a machine of its own."""

    command: Command = field(repr=False)
    shape: Shape
    image: str
    name: str
    idempotency_key: str | None
    org_id: int | None
    arch: Arch = Arch.X64


@dataclass(frozen=True)
class Submitted:
    """The job of a submission; `created` is false where the idempotency key was known."""

    job_id: int
    machine_id: int
    state: JobState
    created: bool


def parse_submission(body: bytes, rules: JobRules) -> Submission:
    """A submission from its JSON; Refused with the field's name where it is wrong."""
    fields = parse_object(body, "job")
    fields.refuse_unknown(_FIELDS)
    if fields.has("argv") == fields.has("cmd"):
        raise Refused("job: give either argv (a list of words) or cmd (a shell line)")
    argv = fields.texts("argv", 4096, 131072) if fields.has("argv") else ("/bin/sh", "-c", fields.text("cmd", 131072))
    image = fields.text("image", 255) if fields.has("image") else rules.default_image
    check_image(image)
    default = Command(argv=("true",))
    command = Command(
        argv=argv,
        env=fields.text_map("env") if fields.has("env") else {},
        cwd=fields.text("cwd") if fields.has("cwd") else default.cwd,
        user=fields.text("user", 256) if fields.has("user") else default.user,
        timeout_s=fields.number("timeout_s", 0.001, MAX_TIMEOUT_S) if fields.has("timeout_s") else None,
    )
    shape = Shape()
    return Submission(
        command=command,
        shape=Shape(
            cpus=fields.integer("cpus") if fields.has("cpus") else shape.cpus,
            mem_mib=fields.integer("mem_mib", 0, 2**30) if fields.has("mem_mib") else shape.mem_mib,
            disk_mib=fields.integer("disk_mib", 0, 2**30) if fields.has("disk_mib") else shape.disk_mib,
        ),
        image=image,
        name=fields.text("name", 256) if fields.has("name") else "",
        idempotency_key=fields.text("idempotency_key", 256) if fields.has("idempotency_key") else None,
        org_id=fields.integer("org_id", 1) if fields.has("org_id") else None,
        arch=fields.choice("arch", Arch) if fields.has("arch") else Arch.X64,
    )


def check_image(image: str) -> None:
    """Refused for what can be no image's name."""
    if not _IMAGE.fullmatch(image) or ".." in image:
        raise Refused("image must be a name such as base or nimbus/ai-eval-runner:latest")


async def submit_job(services: Services, submission: Submission, caller_org: int | None) -> Submitted:
    """Queue the submission for its org; the same idempotency key gives the same job."""
    if caller_org is not None and submission.org_id not in {None, caller_org}:
        raise NotFound(f"there is no org {submission.org_id}")
    org_id = caller_org if caller_org is not None else submission.org_id
    try:
        submitted = await services.database.run(_submit, submission, org_id, services.job_rules)
    except RateLimited:
        services.metrics.org_rate_limits_hit.inc()
        raise
    if submitted.created:
        log.info("job.submitted", job=submitted.job_id, machine_id=submitted.machine_id)
        await services.bell.ring(MACHINES)
    return submitted


async def _submit(transaction: Transaction, submission: Submission, org_id: int | None, rules: JobRules) -> Submitted:
    if org_id is None:
        org_id = await transaction.fetchval(_SQL["default_org"])
    elif not await transaction.fetchval(_SQL["org_exists"], org_id):
        raise NotFound(f"there is no org {org_id}")
    await transaction.execute(_SQL["lock_org"], org_id)
    command = render_command(submission.command)
    if submission.idempotency_key is not None:
        known = await transaction.fetchrow(_SQL["job_by_key"], org_id, submission.idempotency_key)
        if known is not None:
            return await _replay(transaction, known, submission)
    if await transaction.fetchval(_SQL["count_recent"], org_id, rules.rate_interval_s) >= rules.rate_limit:
        raise RateLimited(
            f"org {org_id} submits more than {rules.rate_limit} jobs in {rules.rate_interval_s:g} seconds",
            rules.rate_interval_s,
        )
    job_id = await transaction.fetchval(
        _SQL["insert_job"], org_id, submission.name, command, submission.idempotency_key
    )
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
        ),
    )
    return Submitted(job_id, machine_id, JobState.QUEUED, created=True)


async def _replay(transaction: Transaction, known: Row, submission: Submission) -> Submitted:
    machine = await transaction.fetchrow(_SQL["machine_of_job"], known["job_id"])
    asked = (render_command(submission.command), submission.image, render_shape(submission.shape), submission.arch)
    if machine is None or asked != (known["command"], machine["image"], machine["shape"], machine["arch"]):
        raise Conflict("this idempotency key was used for another job: use a new key")
    return Submitted(known["job_id"], machine["machine_id"], JobState(known["state"]), created=False)


# --- views -------------------------------------------------------------------------------------------------------


async def find_job(services: Services, job_id: int, caller_org: int | None) -> Json:
    """One job by our id or the forge's; NotFound where the caller's org has none."""
    jobs = await services.database.run(_find, job_id, caller_org, services.job_rules)
    return jobs[0]


async def recent_jobs(services: Services, limit: int, caller_org: int | None) -> list[Json]:
    """The newest jobs first."""
    return await services.database.run(_recent, limit, caller_org, services.job_rules)


async def _find(transaction: Transaction, job_id: int, org_id: int | None, rules: JobRules) -> list[Json]:
    return await _describe(transaction, [await _require_job(transaction, job_id, org_id)], rules)


async def _recent(transaction: Transaction, limit: int, org_id: int | None, rules: JobRules) -> list[Json]:
    return await _describe(transaction, await transaction.fetch(_SQL["recent_jobs"], org_id, limit), rules)


async def _require_job(transaction: Transaction, job_id: int, org_id: int | None) -> Row:
    row = await transaction.fetchrow(_SQL["find_job"], job_id, org_id)
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return row


async def _describe(transaction: Transaction, jobs: Iterable[Row], rules: JobRules) -> list[Json]:
    """The jobs with their machines, and what those wait for that wait."""
    rows = list(jobs)
    waiting = [row["job_id"] for row in rows if row["state"] in _NOT_BEGUN]
    reasons = await explain_waiting(transaction, waiting, rules.stolen_limit)
    machines: dict[int, list[Json]] = {row["job_id"]: [] for row in rows}
    for machine in await transaction.fetch(_SQL["machines_of_jobs"], list(machines)):
        machines[machine["job_id"]].append(_render_machine(machine))
    return [
        {**_plain(row), "waits_for": reasons.get(row["job_id"]), "machines": machines[row["job_id"]]} for row in rows
    ]


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
    row = await _require_job(transaction, job_id, None)
    leases = await transaction.fetch(_SQL["leases_of_job"], row["job_id"])
    return {
        **{name: row[name] for name in ("job_id", "org_id", "repo_id", "state")},
        "machines": [{"machine_id": lease["machine_id"], "fence": lease["fence"]} for lease in leases],
    }


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


async def cancel_job(services: Services, job_id: int, caller_org: int | None) -> Json:
    """Cancel a job of our own API; one that has ended stays as it is."""
    return await services.database.run(_cancel, job_id, caller_org)


async def _cancel(transaction: Transaction, job_id: int, org_id: int | None) -> Json:
    row = await _require_job(transaction, job_id, org_id)
    if row["source"] == JobSource.GITHUB:
        raise Refused(f"job {job_id} belongs to GitHub: cancel its run there ({row['html_url'] or 'no address known'})")
    ended = True
    for machine in await transaction.fetch(_SQL["machines_of_jobs"], [row["job_id"]]):
        state = await cancel_machine(transaction, machine["machine_id"], _CANCEL_CAUSE)
        ended = ended and state in TERMINAL
    if ended:
        await transaction.execute(_SQL["cancel_job"], row["job_id"], _CANCEL_CAUSE)
    now = await _require_job(transaction, row["job_id"], org_id)
    return {"job_id": now["job_id"], "state": now["state"], "conclusion": now["conclusion"]}
