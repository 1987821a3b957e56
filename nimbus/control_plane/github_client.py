"""GitHub's REST API as far as runners need it: App JWT, installation tokens, just-in-time runners.

One token a installation, fetched once however many ask, renewed five minutes early. It never retries by
itself, never logs a token or a JIT config and knows no database. `runners.py` calls it; guests and agents
never do. Errors say who must act; GitHub's limits come out as Unavailable with the time to wait.
"""

from __future__ import annotations

import enum
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

import httpx2
import jwt
import trio

from nimbus.model.errors import Conflict, NotFound, Refused, Unauthorized, Unavailable
from nimbus.runtime.http import mapped_http_errors, open_http
from nimbus.wire.fields import Fields, parse_object
from nimbus.wire.github import app_jwt_claims

REFRESH_EARLY_S = 300.0
REQUEST_S = 20.0  # one request, answer included
WAIT_FORBIDDEN_S = 300.0  # an owner must act first: a suspension, a missing permission, an address list
WAIT_BUSY_S = 60.0  # GitHub's own advice where a limit names no time
_SERVICE = "GitHub's API"
_BUSY = frozenset({409, 422})  # GitHub refuses to delete a runner that runs a job; which of the two is not documented
_HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}


@dataclass(frozen=True)
class AppCredentials:
    """The GitHub App that Nimbus acts as."""

    app_id: str
    private_key_pem: str = field(repr=False)


@dataclass(frozen=True)
class RunnerScope:
    """Where a runner registers: a repository, or with `repo` None the whole organisation."""

    installation_id: int
    owner: str
    repo: str | None

    @property
    def path(self) -> str:
        owner = quote(self.owner, safe="")
        root = f"/orgs/{owner}" if self.repo is None else f"/repos/{owner}/{quote(self.repo, safe='')}"
        return f"{root}/actions/runners"


@dataclass(frozen=True)
class JitRunner:
    """A runner that GitHub has registered; its config is the secret of one guest."""

    runner_id: int
    config: str = field(repr=False)


class Deletion(enum.StrEnum):
    """What became of a wish to delete a runner."""

    DELETED = "deleted"
    ABSENT = "absent"  # GitHub removed it itself, or somebody else did
    BUSY = "busy"  # it runs a job: GitHub refuses, and so must we


@dataclass
class _Installation:
    """One installation's token; the lock makes the others wait for the one that fetches."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    token: str = field(default="", repr=False)
    expires_at_s: float = 0.0


class GithubClient:
    """A client for one App. Get one by `open_github`."""

    def __init__(self, http: httpx2.AsyncClient, app: AppCredentials, now_s: Callable[[], float]) -> None:
        self._http = http
        self._app = app
        self._now_s = now_s
        self._installations: defaultdict[int, _Installation] = defaultdict(_Installation)

    async def mint_runner(self, scope: RunnerScope, name: str, labels: tuple[str, ...], group_id: int) -> JitRunner:
        """Register a just-in-time runner; Conflict where the name is taken."""
        body = {"name": name, "runner_group_id": group_id, "labels": list(labels), "work_folder": "_work"}
        answer = await self._call(scope, "POST", f"{scope.path}/generate-jitconfig", body)
        if answer.status_code == 409:
            raise Conflict(f"GitHub has a runner named {name} already")
        fields = _read(answer)
        config = fields.text("encoded_jit_config", max_chars=1_000_000)
        return JitRunner(fields.child("runner").integer("id", 1), config)

    async def find_runner(self, scope: RunnerScope, name: str) -> int | None:
        """The id of the runner with exactly this name."""
        answer = await self._call(scope, "GET", f"{scope.path}?per_page=100&name={quote(name, safe='')}", None)
        _read(answer)
        runners = answer.json().get("runners")
        for entry in runners if isinstance(runners, list) else []:
            runner = Fields(entry, "runner")
            if runner.text("name").lower() == name.lower():
                return runner.integer("id", 1)
        return None

    async def delete_runner(self, scope: RunnerScope, runner_id: int) -> Deletion:
        """Deregister; an absent runner is a success and a busy one is left alone."""
        answer = await self._call(scope, "DELETE", f"{scope.path}/{runner_id}", None)
        if answer.status_code == 404:
            return Deletion.ABSENT
        if answer.status_code in _BUSY:
            return Deletion.BUSY
        _check(answer, self._now_s())
        return Deletion.DELETED

    async def _call(
        self, scope: RunnerScope, method: str, path: str, body: Mapping[str, object] | None
    ) -> httpx2.Response:
        """One request with the installation's token; a token that was revoked is replaced once."""
        answer = await self._send(method, path, body, await self._token(scope.installation_id))
        if answer.status_code == 401:
            self._installations[scope.installation_id].expires_at_s = 0.0
            answer = await self._send(method, path, body, await self._token(scope.installation_id))
        if answer.status_code in {404, *_BUSY}:
            return answer  # the caller knows what these mean
        return _check(answer, self._now_s())

    async def _token(self, installation_id: int) -> str:
        known = self._installations[installation_id]
        async with known.lock:
            if self._now_s() >= known.expires_at_s - REFRESH_EARLY_S:
                await self._refresh(installation_id, known)
            return known.token

    async def _refresh(self, installation_id: int, known: _Installation) -> None:
        try:
            claims = app_jwt_claims(self._app.app_id, self._now_s())
            app_jwt = jwt.encode(claims, self._app.private_key_pem, algorithm="RS256")
        except (ValueError, TypeError, jwt.PyJWTError):
            # the library's message could quote the key
            raise Unavailable("NIMBUS_GITHUB_APP_PRIVATE_KEY is no PEM private key", WAIT_FORBIDDEN_S) from None
        path = f"/app/installations/{installation_id}/access_tokens"
        fields = _read(_check(await self._send("POST", path, {}, app_jwt), self._now_s()))
        known.token = fields.text("token")
        known.expires_at_s = datetime.fromisoformat(fields.text("expires_at")).timestamp()

    async def _send(self, method: str, path: str, body: Mapping[str, object] | None, token: str) -> httpx2.Response:
        headers = {**_HEADERS, "Authorization": f"Bearer {token}"}
        with mapped_http_errors(_SERVICE), trio.move_on_after(REQUEST_S):
            return await self._http.request(method, path, json=body, headers=headers)
        raise Unavailable(f"{_SERVICE} took longer than {REQUEST_S:g} s")


@asynccontextmanager
async def open_github(
    api_url: str, app: AppCredentials, now_s: Callable[[], float] = time.time
) -> AsyncIterator[GithubClient]:
    """A client for as long as the body runs. Opening it sends nothing."""
    async with open_http(api_url.rstrip("/")) as http:
        yield GithubClient(http, app, now_s)


def _read(answer: httpx2.Response) -> Fields:
    """The JSON object of a success; what GitHub refused or did not find is the caller's error by now."""
    if answer.status_code == 404:
        raise NotFound(f"GitHub does not find it: {_said(answer)}")
    if answer.status_code >= 400:
        raise Refused(f"GitHub refuses it: {_said(answer)}")
    try:
        return parse_object(answer.content, "GitHub's answer")
    except Refused:
        raise Unavailable("GitHub's answer is not the JSON that was asked for") from None


def _check(answer: httpx2.Response, now_s: float) -> httpx2.Response:
    """The answer itself, or the error that its status and its limit headers stand for (facts 5.6)."""
    status = answer.status_code
    if status < 300:
        return answer
    if status in {403, 429}:
        raise _limited_or_forbidden(answer, now_s)
    if status == 401:
        raise Unauthorized(f"GitHub does not accept the App's key (check NIMBUS_GITHUB_APP_ID): {_said(answer)}")
    if status >= 500:
        raise Unavailable(f"GitHub answers {status}", 5.0)
    if status == 404:
        raise NotFound(f"GitHub does not find it: {_said(answer)}")
    raise Refused(f"GitHub refuses it: {_said(answer)}")


def _limited_or_forbidden(answer: httpx2.Response, now_s: float) -> Unavailable:
    retry_after = answer.headers.get("retry-after", "")
    reset = answer.headers.get("x-ratelimit-reset", "")
    if retry_after.isascii() and retry_after.isdigit():
        return Unavailable(f"GitHub limits us: {_said(answer)}", float(retry_after[:6]))
    if answer.headers.get("x-ratelimit-remaining") == "0" and reset.isascii() and reset.isdigit():
        return Unavailable(f"GitHub limits us: {_said(answer)}", max(1.0, float(reset[:12]) - now_s))
    if answer.status_code == 429:
        return Unavailable(f"GitHub limits us: {_said(answer)}", WAIT_BUSY_S)
    return Unavailable(f"GitHub forbids it, its owner must act: {_said(answer)}", WAIT_FORBIDDEN_S)


def _said(answer: httpx2.Response) -> str:
    """GitHub's own message, one short line: an error of theirs carries no secret of ours."""
    try:
        message = answer.json().get("message", "")
    except (ValueError, AttributeError, RecursionError):
        message = ""
    return " ".join(str(message).split())[:200] or f"status {answer.status_code}"
