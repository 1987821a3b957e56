"""GitHub's REST API as far as Nimbus needs it: runners, hook deliveries, installations, runs and jobs.

One client for one App, shared by everybody in the process. It knows no database; guests and agents never come
here. Every call raises ForgeTrouble where GitHub refuses, is away or wants us to slow down: it carries the problem,
and so whose turn it is. NotFound and Conflict stay where the caller knows what they mean. What a call costs and
when it may go is `github/transport.py`'s to decide.
"""

from __future__ import annotations

import enum
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

from nimbus.control_plane.github.answers import Answer, outage
from nimbus.control_plane.github.limits import LimitTerms, Purpose, Quota
from nimbus.control_plane.github.pages import is_same_origin, next_cursor, next_link
from nimbus.control_plane.github.tokens import AppCredentials, TokenShelf
from nimbus.control_plane.github.transport import Call, Observer, Transport, Unobserved, read_answer
from nimbus.model.errors import Conflict, NotFound, Refused
from nimbus.model.forge import ForgeTrouble, ProblemKind
from nimbus.runtime.http import open_http
from nimbus.wire import githubrest
from nimbus.wire.github import ForgeRepo, WorkflowJobEvent
from nimbus.wire.githubrest import DeliverySeen, InstallationSeen, JitRunner, RepoSeen, RunnerSeen, RunSeen, TokenReply

# the credentials too: whoever opens a client needs them
__all__ = ["AppCredentials", "Deletion", "GithubClient", "RunnerScope", "open_github"]

PER_PAGE = 100  # GitHub's most
MAX_PAGES = 200  # twice the runners that a group may hold
MAX_RUN_PAGES = 2  # 200 runs: what one look at a repository is worth
_BUSY = frozenset({409, 422})  # "... is currently running a job and cannot be deleted": seen with 422
_RUNS_A_JOB = re.compile(r"currently running a job", re.IGNORECASE)  # which status goes with it nobody promises
_GONE = frozenset({404})


@dataclass(frozen=True)
class RunnerScope:
    """Where a runner registers: a repository, or with `repo` None the whole organisation."""

    installation_id: int
    owner: str
    repo: str | None

    @property
    def path(self) -> str:
        owner = _segment(self.owner)
        root = f"/orgs/{owner}" if self.repo is None else f"/repos/{owner}/{_segment(self.repo)}"
        return f"{root}/actions/runners"


class Deletion(enum.StrEnum):
    """What became of a wish to delete a runner."""

    DELETED = "deleted"
    ABSENT = "absent"  # GitHub removed it itself, or somebody else did
    BUSY = "busy"  # it runs a job: GitHub refuses, and so must we


class GithubClient:
    """A client for one App. Get one by `open_github`."""

    def __init__(self, transport: Transport, api_url: str, now_s: Callable[[], float]) -> None:
        self._transport = transport
        self._api_url = api_url
        self._registrations: TokenShelf[RunnerScope] = TokenShelf(self._fetch_registration, now_s)

    # -- runners ---------------------------------------------------------------------------------------------------

    async def mint_runner(self, scope: RunnerScope, name: str, labels: tuple[str, ...], group_id: int) -> JitRunner:
        """Register a just-in-time runner; Conflict where the name is taken."""
        body = {"name": name, "runner_group_id": group_id, "labels": list(labels), "work_folder": "_work"}
        call = Call(
            "POST", f"{scope.path}/generate-jitconfig", "generate-jitconfig", scope.installation_id, Purpose.RUNNERS,
            body, frozenset({409}),
        )  # fmt: skip
        answer = await self._transport.send(call)
        if answer.status == 409:
            raise Conflict(f"GitHub has a runner named {name} already")
        return read_answer(githubrest.parse_jit, answer)

    async def registration_token(self, scope: RunnerScope) -> TokenReply:
        """A token that registers runners in this scope, good for five minutes at least. It serves more than once."""
        return await self._registrations.read(scope)

    async def find_runner(self, scope: RunnerScope, name: str) -> RunnerSeen | None:
        """The runner with exactly this name, as GitHub sees it now."""
        path = f"{scope.path}?{urlencode({'per_page': PER_PAGE, 'name': name})}"
        call = Call("GET", path, "runners", scope.installation_id, Purpose.RUNNERS)
        for runner in read_answer(githubrest.parse_runners, await self._transport.send(call)):
            if runner.name.lower() == name.lower():
                return runner
        return None

    async def list_runners(self, scope: RunnerScope) -> tuple[RunnerSeen, ...]:
        """Every runner of the scope. Pages shift while they are read: one that is missing may exist all the same."""
        call = Call("GET", f"{scope.path}?per_page={PER_PAGE}", "runners", scope.installation_id, kept=True)
        pages = await self._read_pages(call)
        # a runner that moved to the next page meanwhile is listed twice
        runners = {runner.runner_id: runner for page in pages for runner in read_answer(githubrest.parse_runners, page)}
        return tuple(runners.values())

    async def delete_runner(self, scope: RunnerScope, runner_id: int) -> Deletion:
        """Deregister; an absent runner is a success and a busy one is left alone."""
        path = f"{scope.path}/{runner_id}"
        call = Call("DELETE", path, "runner", scope.installation_id, Purpose.RUNNERS, known=_BUSY | _GONE)
        try:
            answer = await self._transport.send(call)
        except ForgeTrouble as trouble:
            # a 403 like this is no problem of the repository's: it would keep others from registering there
            if trouble.problem.kind is ProblemKind.REFUSED and _RUNS_A_JOB.search(trouble.problem.said):
                return Deletion.BUSY
            raise
        if answer.status == 404:
            return Deletion.ABSENT
        return Deletion.BUSY if answer.status in _BUSY else Deletion.DELETED

    async def _fetch_registration(self, scope: RunnerScope) -> TokenReply:
        path = f"{scope.path}/registration-token"
        call = Call("POST", path, "registration-token", scope.installation_id, Purpose.RUNNERS, {}, repeatable=True)
        return read_answer(githubrest.parse_token, await self._transport.send(call))

    # -- the App ---------------------------------------------------------------------------------------------------

    async def list_deliveries(self, cursor: str | None) -> tuple[tuple[DeliverySeen, ...], str | None]:
        """One page of the App's webhook deliveries, newest first, and the next cursor; NotFound without a hook."""
        query = {"per_page": str(PER_PAGE)} | ({} if cursor is None else {"cursor": cursor})
        call = Call("GET", f"/app/hook/deliveries?{urlencode(query)}", "deliveries", None, known=_GONE)
        answer = _found(await self._transport.send(call), "the App's webhook")
        return read_answer(githubrest.parse_deliveries, answer), next_cursor(answer)

    async def redeliver(self, delivery_id: int) -> None:
        """Ask for this delivery once more; NotFound where GitHub has forgotten it."""
        path = f"/app/hook/deliveries/{delivery_id}/attempts"
        call = Call("POST", path, "redeliver", None, known=_GONE)
        _found(await self._transport.send(call), f"delivery {delivery_id}")

    async def list_installations(self) -> tuple[InstallationSeen, ...]:
        """Where the App is installed, suspended installations too."""
        # not kept: such a page may stay as it is although another now follows it
        call = Call("GET", f"/app/installations?per_page={PER_PAGE}", "installations", None)
        pages = await self._read_pages(call)
        return tuple(seen for page in pages for seen in read_answer(githubrest.parse_installations, page))

    # -- repositories, runs and jobs -------------------------------------------------------------------------------

    async def list_repositories(self, installation_id: int) -> tuple[RepoSeen, ...]:
        """The repositories that the installation reaches."""
        path = f"/installation/repositories?per_page={PER_PAGE}"
        pages = await self._read_pages(Call("GET", path, "repositories", installation_id, kept=True))
        return tuple(seen for page in pages for seen in read_answer(githubrest.parse_repositories, page))

    async def list_runs(self, installation_id: int, full_name: str, status: str) -> tuple[RunSeen, ...]:
        """The newest runs with this status, 200 at most; NotFound where the repository is gone."""
        path = f"{_repo_path(full_name)}/actions/runs?{urlencode({'status': status, 'per_page': PER_PAGE})}"
        call = Call("GET", path, "runs", installation_id, known=_GONE, kept=True)
        pages = await self._read_pages(call, MAX_RUN_PAGES, whole=False)
        return tuple(seen for page in pages for seen in read_answer(githubrest.parse_runs, page))

    async def list_jobs(self, installation_id: int, repo: ForgeRepo, run: RunSeen) -> tuple[WorkflowJobEvent, ...]:
        """The jobs of this attempt, as the webhooks that would have told the same; NotFound where it is gone."""
        path = f"{_repo_path(repo.full_name)}/actions/runs/{run.run_id}/attempts/{run.attempt}/jobs?per_page={PER_PAGE}"
        pages = await self._read_pages(Call("GET", path, "jobs", installation_id, known=_GONE, kept=True))
        return tuple(
            job
            for page in pages
            for job in read_answer(lambda body: githubrest.parse_jobs(body, repo, installation_id), page)
        )

    async def find_job(self, installation_id: int, repo: ForgeRepo, forge_job_id: int) -> WorkflowJobEvent | None:
        """This job as it stands now; None where GitHub knows none such."""
        path = f"{_repo_path(repo.full_name)}/actions/jobs/{forge_job_id}"
        answer = await self._transport.send(Call("GET", path, "job", installation_id, known=_GONE, kept=True))
        if answer.status == 404:
            return None
        return read_answer(lambda body: githubrest.parse_job(body, repo, installation_id), answer)

    def quota(self, installation_id: int) -> Quota | None:
        """The installation's hourly quota as the last answer told it; None before the first and after a reset."""
        return self._transport.quota(installation_id)

    async def _read_pages(self, call: Call, max_pages: int = MAX_PAGES, *, whole: bool = True) -> list[Answer]:
        """This page and those after it. A list that would not end is trouble where the `whole` of it counts."""
        pages = []
        for _ in range(max_pages):
            pages.append(_found(await self._transport.send(call), call.route))
            link = next_link(pages[-1])
            if link is None:
                return pages
            if not is_same_origin(link, self._api_url):
                raise ForgeTrouble(outage("GitHub's next page is on another host"))
            call = _at(call, link)
        if whole:
            raise ForgeTrouble(outage(f"GitHub's list of {call.route} has more than {max_pages} pages"))
        return pages


def _at(call: Call, link: str) -> Call:
    return Call(call.method, link, call.route, call.installation_id, call.purpose, known=call.known, kept=call.kept)


def _found(answer: Answer, what: str) -> Answer:
    if answer.status == 404:
        raise NotFound(f"GitHub does not find {what}")
    return answer


def _repo_path(full_name: str) -> str:
    owner, separator, name = full_name.partition("/")
    if not separator:
        raise Refused(f"{full_name[:100]!r} is no repository: owner/name is needed")
    return f"/repos/{_segment(owner)}/{_segment(name)}"


def _segment(name: str) -> str:
    """A name as one part of a path, whatever is in it."""
    if name in {"", ".", ".."}:
        raise Refused(f"{name!r} is no name of an account or a repository")
    return quote(name, safe="")


@asynccontextmanager
async def open_github(
    api_url: str,
    app: AppCredentials,
    terms: LimitTerms | None = None,
    observer: Observer | None = None,
    now_s: Callable[[], float] = time.time,
) -> AsyncIterator[GithubClient]:
    """A client for as long as the body runs. Opening it sends nothing. Refused where the address is no URL."""
    root = api_url.rstrip("/")
    parts = urlsplit(root)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Refused("NIMBUS_GITHUB_API_URL is no address: https://api.github.com or https://HOST/api/v3 is needed")
    chance = random.Random()  # noqa: S311 - spreads calls that were refused together
    async with open_http(root) as http:
        transport = Transport(http, app, terms or LimitTerms(), observer or Unobserved(), now_s, chance)
        yield GithubClient(transport, root, now_s)
