"""GitHub's webhook and App formats: bytes and headers <-> frozen values.

It never opens a socket, keeps a secret or decides what a job means. The control plane's `webhooks`,
`demand`, `runners` and `github/client` call it, and so does the bundled fake GitHub (`nimbus.sim`), so
that both sides of the rehearsal share one spelling. Strict about ids and types, permissive about words
that GitHub may add (conclusions, actions).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from nimbus.model.errors import Refused, Unauthorized
from nimbus.model.job import JobState

MAX_WEBHOOK_BYTES = 25 * 1024 * 1024  # GitHub delivers nothing larger
APP_JWT_BACKDATE_S = 60  # GitHub's advice against clock drift
APP_JWT_LIFE_S = 9 * 60  # GitHub refuses more than 10 minutes
MAX_LABELS = 100
MAX_LABEL_CHARS = 256
_MAX_ID = 2**63 - 1
_GUID = re.compile(r"[0-9A-Za-z-]{8,64}")
_EVENT = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SIGNATURE = re.compile(r"sha256=([0-9a-f]{64})")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # valid in JSON, refused by PostgreSQL's text


@dataclass(frozen=True)
class WebhookHeaders:
    """What the headers of one delivery say. `guid` is the same again when GitHub redelivers."""

    event: str
    guid: str
    signature: str | None
    timestamp: str | None  # not GitHub's: only a trusted relay adds it


@dataclass(frozen=True)
class ForgeRepo:
    """A repository and the account that owns it, by GitHub's ids."""

    forge_id: int
    name: str
    full_name: str
    private: bool
    owner_id: int
    owner_login: str


@dataclass(frozen=True)
class WorkflowJobEvent:
    """One `workflow_job` event. `told` is what it says of the job; None for an action we do not know."""

    action: str
    told: JobState | None
    forge_job_id: int
    run_id: int
    run_attempt: int
    name: str
    workflow_name: str | None
    head_branch: str | None
    head_sha: str | None
    html_url: str | None
    conclusion: str | None
    labels: tuple[str, ...]  # a label set: lower-case, sorted, each once
    runner_id: int | None
    runner_name: str | None
    created_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    repo: ForgeRepo
    installation_id: int | None


def parse_webhook_headers(headers: Mapping[str, str]) -> WebhookHeaders:
    """The delivery's headers; Refused where the event or the GUID is missing or malformed."""
    lower = {name.lower(): value for name, value in headers.items()}
    event, guid = lower.get("x-github-event", ""), lower.get("x-github-delivery", "")
    if not _EVENT.fullmatch(event):
        raise Refused("the X-GitHub-Event header is missing or malformed")
    if not _GUID.fullmatch(guid):
        raise Refused("the X-GitHub-Delivery header is missing or malformed")
    return WebhookHeaders(event, guid, lower.get("x-hub-signature-256"), lower.get("x-hub-signature-timestamp"))


def render_signature(secret: str, body: bytes) -> str:
    """The value of X-Hub-Signature-256 for this body."""
    return "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()


def verify_signature(secrets: Sequence[str], body: bytes, header: str | None) -> None:
    """Unauthorized unless one of the secrets (the current one and, during a rotation, the previous) signed the body.

    Every secret is tried in full, so that the time taken says nothing about which one matched.
    """
    match = _SIGNATURE.fullmatch(header) if header is not None else None
    if match is None:
        raise Unauthorized("the X-Hub-Signature-256 header is missing or malformed")
    good = False
    for secret in secrets:
        if secret:  # an unset secret must not become a key that everybody knows
            good |= hmac.compare_digest(render_signature(secret, body), f"sha256={match[1]}")
    if not good:
        raise Unauthorized("the webhook's signature does not match: check the secret on both sides")


def check_timestamp(header: str | None, now_s: float, tolerance_s: float, *, required: bool = False) -> None:
    """Unauthorized for a relay's timestamp outside the tolerance; a missing one passes unless required."""
    if header is None:
        if required:
            raise Unauthorized("X-Hub-Signature-Timestamp is required here and missing")
        return
    if not re.fullmatch(r"[0-9]{1,15}", header):
        raise Unauthorized("X-Hub-Signature-Timestamp is not a number of Unix seconds")
    if abs(now_s - int(header)) > tolerance_s:
        raise Unauthorized(f"X-Hub-Signature-Timestamp is more than {tolerance_s:g} s away from this clock")


def parse_json_object(body: bytes) -> dict[str, object]:
    """The JSON object in `body`; Refused for anything else, however deep or large its parts."""
    try:
        value = _JSON.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Refused("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise Refused("the body is not a JSON object")
    return value


def parse_workflow_job(body: bytes) -> WorkflowJobEvent:
    """The event in the body of a `workflow_job` delivery; Refused names the field that is wrong."""
    return read_workflow_job(parse_json_object(body))


def read_workflow_job(top: Mapping[str, object]) -> WorkflowJobEvent:
    """The same from a body that is JSON already."""
    action = _text(top, "action")
    return read_job(_object(top, "workflow_job"), action, read_repo(top, "repository"), installation_id(top))


def read_job(job: Mapping[str, object], action: str, repo: ForgeRepo, installation: int | None) -> WorkflowJobEvent:
    """One job, as deliveries and the REST API both write it."""
    return WorkflowJobEvent(
        action=action,
        told=told_state(action, _optional_text(job, "status")),
        forge_job_id=_id(job, "id"),
        run_id=_id(job, "run_id"),
        run_attempt=_id(job, "run_attempt") if job.get("run_attempt") is not None else 1,
        name=_text(job, "name"),
        workflow_name=_optional_text(job, "workflow_name"),
        head_branch=_optional_text(job, "head_branch"),
        head_sha=_optional_text(job, "head_sha"),
        html_url=_optional_text(job, "html_url"),
        conclusion=_optional_text(job, "conclusion"),
        labels=_labels(job),
        # GitHub writes an unassigned runner as null, and in older payloads as 0 and ""
        runner_id=_id(job, "runner_id") if job.get("runner_id") else None,
        runner_name=_optional_text(job, "runner_name") or None,
        created_at=_time(job, "created_at"),
        started_at=_time(job, "started_at"),
        completed_at=_time(job, "completed_at"),
        repo=repo,
        installation_id=installation,
    )


def read_repo(parent: Mapping[str, object], key: str) -> ForgeRepo:
    """The repository under `key`."""
    repo = _object(parent, key)
    owner = _object(repo, "owner")
    return ForgeRepo(
        forge_id=_id(repo, "id"),
        name=_text(repo, "name"),
        full_name=_text(repo, "full_name"),
        private=repo.get("private") is not False,  # unknown counts as private: the narrower answer
        owner_id=_id(owner, "id"),
        owner_login=_text(owner, "login"),
    )


def told_state(action: str, status: str | None) -> JobState | None:
    """What the pair says of the job: the action decides, but a queued job with status `waiting` is at a gate."""
    if action == "queued" and status == "waiting":
        return JobState.WAITING
    known = {
        "waiting": JobState.WAITING,
        "queued": JobState.QUEUED,
        "in_progress": JobState.IN_PROGRESS,
        "completed": JobState.COMPLETED,
    }
    return known.get(action)


def installation_id(top: Mapping[str, object]) -> int | None:
    """The App installation that a payload names; None for a repository hook."""
    if top.get("installation") is None:
        return None
    return _id(_object(top, "installation"), "id")


def label_set(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels as GitHub compares them: without case, order or repetition."""
    return tuple(sorted({label.strip().lower() for label in labels if label.strip()}))


def runner_serves(runner_labels: Iterable[str], job_labels: Iterable[str]) -> bool:
    """Whether GitHub would give a job with these labels to such a runner: it must carry them all."""
    return set(label_set(job_labels)) <= set(label_set(runner_labels))


def app_jwt_claims(app_id: str, now_s: float) -> dict[str, object]:
    """Claims of the App's RS256 JWT."""
    issued_s = int(now_s) - APP_JWT_BACKDATE_S
    return {"iat": issued_s, "exp": issued_s + APP_JWT_LIFE_S, "iss": app_id}


def encode_jit_config(files: Mapping[str, bytes]) -> str:
    """A JIT config as a runner takes it: base64 of JSON {file name: base64 of its content}."""
    inner = {name: base64.b64encode(content).decode("ascii") for name, content in files.items()}
    return base64.b64encode(json.dumps(inner).encode()).decode("ascii")


def decode_jit_config(text: str) -> dict[str, bytes]:
    """The files in a JIT config; Refused where it is none. The message never quotes it: it is a secret."""
    try:
        inner = parse_json_object(base64.b64decode(text, validate=True))
        return {name: base64.b64decode(_text(inner, name), validate=True) for name in inner}
    except (binascii.Error, ValueError, Refused):
        raise Refused("this is not a JIT config: base64 of a JSON object of base64 files is needed") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(name)  # NaN and Infinity are not JSON


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)  # made once: it is asked for each webhook


def _object(parent: Mapping[str, object], key: str) -> dict[str, object]:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise Refused(f"{key} is missing or not an object")
    return value


def _id(parent: Mapping[str, object], key: str) -> int:
    value = parent.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_ID:
        raise Refused(f"{key} is missing or not an id")
    return value


def _text(parent: Mapping[str, object], key: str) -> str:
    value = _optional_text(parent, key)
    if value is None:
        raise Refused(f"{key} is missing")
    return value


def _optional_text(parent: Mapping[str, object], key: str) -> str | None:
    value = parent.get(key)
    if value is not None and not isinstance(value, str):
        raise Refused(f"{key} is not text")
    return _UNSTORABLE.sub("\ufffd", value) if value is not None else None


def _time(parent: Mapping[str, object], key: str) -> datetime | None:
    text = _optional_text(parent, key)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(f"{key} is not a time") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _labels(job: Mapping[str, object]) -> tuple[str, ...]:
    """The label set; an empty one, which is nobody's, where a workflow's author wrote what no runner can have.

    Refusing such an event would make GitHub list it as failed, and each repair would ask for it again.
    """
    value = job.get("labels")
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise Refused("labels is missing or no list of texts")
    odd = len(value) > MAX_LABELS or any(len(label) > MAX_LABEL_CHARS or _UNSTORABLE.search(label) for label in value)
    return () if odd else label_set(value)
