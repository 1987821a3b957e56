"""What GitHub's REST API answers, as values: runners, hook deliveries, installations, repositories, runs and jobs.

Sans-IO. `control_plane/github/client.py` calls it. A page that is not of the right form is Refused; an element of
it that cannot be read (tenants write names and labels) is left out: it must not hide its neighbours. The job
itself is read as its webhook is, in `wire/github.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from nimbus.model.errors import Refused
from nimbus.wire.fields import Fields, parse_object
from nimbus.wire.github import ForgeRepo, WorkflowJobEvent, parse_json_object, read_job, read_repo

MAX_PAGE = 1000  # elements: ten times what GitHub puts on one page
MAX_JIT_CHARS = 1_000_000
_WHAT = "GitHub's answer"
# What a job's status says, as the action of the webhook that would have told it. `pending` waits for its concurrency
# group and `requested` for GitHub itself: neither may boot anything yet.
_ACTIONS = {
    "requested": "waiting",
    "pending": "waiting",
    "waiting": "waiting",
    "queued": "queued",
    "in_progress": "in_progress",
    "completed": "completed",
}

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class TokenReply:
    """A token and when it ends: an installation's, or one that registers runners."""

    token: str = field(repr=False)
    expires_at_s: float


@dataclass(frozen=True)
class JitRunner:
    """A runner that was just registered; its config is the secret of one guest."""

    runner_id: int
    config: str = field(repr=False)


@dataclass(frozen=True)
class RunnerSeen:
    """A runner as GitHub lists it. `online` lags behind its registration."""

    runner_id: int
    name: str
    online: bool
    busy: bool
    labels: tuple[str, ...]


@dataclass(frozen=True)
class DeliverySeen:
    """One attempt to deliver a webhook; attempts for one event share the guid."""

    delivery_id: int
    guid: str
    delivered_at: datetime
    ok: bool
    status_code: int
    event: str
    action: str | None
    installation_id: int | None
    redelivery: bool


@dataclass(frozen=True)
class InstallationSeen:
    """Where the App is installed."""

    installation_id: int
    account_id: int
    login: str
    suspended: bool


@dataclass(frozen=True)
class RepoSeen:
    """A repository that an installation reaches."""

    repo: ForgeRepo
    archived: bool
    pushed_at: datetime | None


@dataclass(frozen=True)
class RunSeen:
    """A workflow run, in its newest attempt."""

    run_id: int
    attempt: int
    updated_at: datetime


def parse_token(body: bytes) -> TokenReply:
    """An installation token or a registration token."""
    fields = parse_object(body, _WHAT)
    return TokenReply(fields.text("token"), _moment(fields, "expires_at").timestamp())


def parse_jit(body: bytes) -> JitRunner:
    """The answer to `generate-jitconfig`."""
    fields = parse_object(body, _WHAT)
    return JitRunner(fields.child("runner").integer("id", 1), fields.text("encoded_jit_config", MAX_JIT_CHARS))


def parse_runners(body: bytes) -> tuple[RunnerSeen, ...]:
    """One page of `GET .../actions/runners`."""
    return _readable(_elements(parse_json_object(body).get("runners")), _runner)


def parse_deliveries(body: bytes) -> tuple[DeliverySeen, ...]:
    """One page of `GET /app/hook/deliveries`."""
    return _readable(_elements(_array(body)), _delivery)


def parse_installations(body: bytes) -> tuple[InstallationSeen, ...]:
    """One page of `GET /app/installations`; those of enterprises, which have no login, are left out."""
    return _readable(_elements(_array(body)), _installation)


def parse_repositories(body: bytes) -> tuple[RepoSeen, ...]:
    """One page of `GET /installation/repositories`."""
    return _readable(_elements(parse_json_object(body).get("repositories")), _repository)


def parse_runs(body: bytes) -> tuple[RunSeen, ...]:
    """One page of `GET /repos/.../actions/runs`."""
    return _readable(_elements(parse_json_object(body).get("workflow_runs")), _run)


def parse_jobs(body: bytes, repo: ForgeRepo, installation_id: int) -> tuple[WorkflowJobEvent, ...]:
    """One page of `GET /repos/.../actions/runs/.../jobs`, as the webhooks that would have told the same."""
    return _readable(_elements(parse_json_object(body).get("jobs")), lambda job: _job(job, repo, installation_id))


def parse_job(body: bytes, repo: ForgeRepo, installation_id: int) -> WorkflowJobEvent:
    """The answer to `GET /repos/.../actions/jobs/...`."""
    return _job(parse_json_object(body), repo, installation_id)


def _runner(element: Mapping[str, object]) -> RunnerSeen:
    fields = Fields(element, _WHAT)
    labels = fields.children("labels", MAX_PAGE) if fields.has("labels") else []
    return RunnerSeen(
        runner_id=fields.integer("id", 1),
        name=fields.text("name"),
        online=fields.text("status") == "online",
        # whatever is not a plain no counts as busy: only an idle runner may ever be removed
        busy=element.get("busy") is not False,
        labels=tuple(label.text("name") for label in labels),
    )


def _delivery(element: Mapping[str, object]) -> DeliverySeen:
    fields = Fields(element, _WHAT)
    status_code = fields.integer("status_code") if fields.has("status_code") else 0
    return DeliverySeen(
        delivery_id=fields.integer("id", 1),
        guid=fields.text("guid", 64),
        delivered_at=_moment(fields, "delivered_at"),
        ok=200 <= status_code < 300,
        status_code=status_code,
        event=fields.text("event", 64),
        action=fields.text("action", 64) if fields.has("action") else None,
        installation_id=fields.integer("installation_id", 1) if fields.has("installation_id") else None,
        redelivery=element.get("redelivery") is True,
    )


def _installation(element: Mapping[str, object]) -> InstallationSeen:
    fields = Fields(element, _WHAT)
    account = fields.child("account")
    return InstallationSeen(
        installation_id=fields.integer("id", 1),
        account_id=account.integer("id", 1),
        login=account.text("login"),
        suspended=fields.has("suspended_at"),
    )


def _repository(element: Mapping[str, object]) -> RepoSeen:
    fields = Fields(element, _WHAT)
    return RepoSeen(
        repo=read_repo({"repository": element}, "repository"),
        archived=element.get("archived") is True,
        pushed_at=_moment(fields, "pushed_at") if fields.has("pushed_at") else None,
    )


def _run(element: Mapping[str, object]) -> RunSeen:
    fields = Fields(element, _WHAT)
    attempt = fields.integer("run_attempt", 1) if fields.has("run_attempt") else 1
    return RunSeen(fields.integer("id", 1), attempt, _moment(fields, "updated_at"))


def _job(element: Mapping[str, object], repo: ForgeRepo, installation_id: int) -> WorkflowJobEvent:
    status = Fields(element, _WHAT).text("status", 64)
    return read_job(element, _ACTIONS.get(status, status), repo, installation_id)


def _readable(elements: list[Mapping[str, object]], read: Callable[[Mapping[str, object]], Seen]) -> tuple[Seen, ...]:
    seen = []
    for element in elements:
        try:
            seen.append(read(element))
        except Refused:
            continue  # odd alone: the others are still true
    return tuple(seen)


def _elements(value: object) -> list[Mapping[str, object]]:
    if not isinstance(value, list) or len(value) > MAX_PAGE:
        raise Refused(f"{_WHAT} is not a list of at most {MAX_PAGE}")
    return [element for element in value if isinstance(element, dict)]


def _array(body: bytes) -> object:
    try:
        return json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Refused(f"{_WHAT} is not valid JSON") from None


def _moment(fields: Fields, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(fields.text(name, 64))
    except ValueError:
        raise Refused(f"{_WHAT}: {name} is not a time") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
