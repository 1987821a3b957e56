"""One call to GitHub, from the queue to the judged answer: limits, breaker, credentials, retries, pages kept.

Reads are tried again after an outage; writes never are, since a reply that was lost says nothing of what was done
(`runners.py` finds a lost runner by its name). A refusal comes out as ForgeTrouble with whose turn it is.
`github/client.py` makes the calls; nothing else comes here. No token, JIT config or key is ever in a message.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar
from urllib.parse import urljoin

import httpx2
import structlog
import trio

from nimbus.control_plane.github.answers import Answer, judge, outage
from nimbus.control_plane.github.breaker import Breaker
from nimbus.control_plane.github.limits import READ_POINTS, WRITE_POINTS, Entrance, Lane, LimitTerms, Purpose, Quota
from nimbus.control_plane.github.pages import KeptPages, is_same_origin
from nimbus.control_plane.github.tokens import AppCredentials, AppJwt, TokenShelf
from nimbus.model.errors import Refused
from nimbus.model.forge import ForgeTrouble, Problem, ProblemKind
from nimbus.runtime.retry import Backoff
from nimbus.wire.githubrest import TokenReply, parse_token

log = structlog.get_logger()
Value = TypeVar("Value")

REQUEST_S = 20.0  # one request, answer included
READ_TRIES = 3
WAYS = 40  # connections at once for each purpose, all installations together; 100 is what the HTTP client keeps
MAX_REDIRECTS = 2
_HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
_LIMITS = frozenset({ProblemKind.RATE_LIMIT, ProblemKind.SECONDARY_LIMIT})
_REDIRECTS = frozenset({301, 302, 307, 308})  # a renamed repository; GitHub wants the same request again
_RETRY_WAIT = Backoff(base_s=0.2, max_s=1.0)


@dataclass(frozen=True)
class Call:
    """One call. `route` names it in metrics; statuses in `known` are the caller's to understand."""

    method: str
    path: str
    route: str
    installation_id: int | None  # None: the App itself
    purpose: Purpose = Purpose.REPAIR
    body: Mapping[str, object] | None = field(default=None, repr=False)
    known: frozenset[int] = frozenset()
    kept: bool = False  # a page that is asked for again and again
    repeatable: bool = False  # doing it twice does no harm

    @property
    def harmless(self) -> bool:
        """Sent once too often, it does no harm."""
        return self.method == "GET" or self.repeatable

    @property
    def entrance(self) -> Entrance:
        return Entrance(self.purpose, READ_POINTS if self.method == "GET" else WRITE_POINTS)


class Observer(Protocol):
    """Who counts."""

    def called(self, route: str, status: str) -> None:
        """One request was answered, or not (`lost`)."""

    def waited(self, purpose: Purpose, wait_s: float) -> None:
        """A caller stood in the queue."""

    def refused(self, kind: ProblemKind) -> None:
        """GitHub, or our own limits, refused a call."""

    def breaker_changed(self, is_open: bool) -> None:
        """Calls are no longer let through, or they are again."""


class Unobserved:
    """Nobody counts."""

    def called(self, route: str, status: str) -> None:
        pass

    def waited(self, purpose: Purpose, wait_s: float) -> None:
        pass

    def refused(self, kind: ProblemKind) -> None:
        pass

    def breaker_changed(self, is_open: bool) -> None:
        pass


class _Away(ForgeTrouble):
    """This one request met an outage."""


class Transport:
    """Every way to one GitHub."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        app: AppCredentials,
        terms: LimitTerms,
        observer: Observer,
        now_s: Callable[[], float],
        chance: random.Random,
    ) -> None:
        self._http = http
        self._terms = terms
        self._observer = observer
        self._now_s = now_s
        self._chance = chance
        self._lanes: dict[int | None, Lane] = {}
        self._ways = {purpose: trio.CapacityLimiter(WAYS) for purpose in Purpose}
        self._breaker = Breaker(chance)
        self._looks: defaultdict[int | None, trio.Lock] = defaultdict(trio.Lock)  # one goes ahead for all who wait
        self._pages = KeptPages()
        self._app_jwt = AppJwt(app, now_s, terms.owner_retry_s)
        self._tokens: TokenShelf[int] = TokenShelf(self._fetch_token, now_s)

    async def send(self, call: Call) -> Answer:
        """The answer: a success, or a status that the caller knows. ForgeTrouble for all else."""
        try:
            return await self._send(call)
        except ForgeTrouble as trouble:
            self._observer.refused(trouble.problem.kind)
            raise

    def quota(self, installation_id: int) -> Quota | None:
        """The installation's hourly quota, where an answer told it."""
        lane = self._lanes.get(installation_id)
        return None if lane is None else lane.budget.quota

    async def _send(self, call: Call) -> Answer:
        delays = _RETRY_WAIT.delays_s()
        tries = READ_TRIES if call.harmless else 1
        limited = False
        while True:
            tries -= 1
            try:
                if not call.harmless:
                    await self._look_first(call.installation_id)
                answer = await self._authorised(call)
            except _Away as away:
                if tries <= 0:
                    # no longer an _Away: whoever wanted this for another call does not multiply the tries
                    raise ForgeTrouble(away.problem) from None
                await trio.sleep(next(delays))
                continue
            problem = self._judge(call, answer)
            if problem is None:
                return answer
            if problem.kind not in _LIMITS or limited:
                raise ForgeTrouble(problem)
            limited = True  # it was refused, not lost: the lane waits now, or says how long that would be

    async def _look_first(self, installation_id: int | None) -> None:
        """After an outage or a limit one read goes ahead: a write may be wasted, or done without our knowing.

        This one costs no quota. ForgeTrouble where it does not go well; 404 is the answer of a server without limits.
        """
        if not self._in_doubt(installation_id):
            return
        async with self._looks[installation_id]:
            if self._in_doubt(installation_id):
                look = Call(
                    "GET", "/rate_limit", "rate_limit", installation_id, Purpose.RUNNERS, known=frozenset({404})
                )
                await self._send(look)

    def _in_doubt(self, installation_id: int | None) -> bool:
        return self._breaker.in_doubt or self._lane(installation_id).budget.on_trial

    def _judge(self, call: Call, answer: Answer) -> Problem | None:
        if answer.status < 300 or answer.status in call.known:
            return None
        return judge(answer, self._now_s(), self._terms.owner_retry_s, as_app=call.installation_id is None)

    async def _authorised(self, call: Call) -> Answer:
        """One request with a good credential; one that GitHub does not take is replaced once."""
        token = await self._credential(call)
        answer = await self._queued(call, token)
        if answer.status == 401:
            if call.installation_id is None:
                self._app_jwt.forget(token)
            else:
                self._tokens.forget(call.installation_id, token)
            answer = await self._queued(call, await self._credential(call))
        return answer

    async def _credential(self, call: Call) -> str:
        if call.installation_id is None:
            return self._app_jwt.read()
        return (await self._tokens.read(call.installation_id)).token

    async def _fetch_token(self, installation_id: int) -> TokenReply:
        path = f"/app/installations/{installation_id}/access_tokens"
        call = Call("POST", path, "access_tokens", None, Purpose.RUNNERS, {}, repeatable=True)
        return read_answer(parse_token, await self._send(call))

    async def _queued(self, call: Call, token: str) -> Answer:
        """One request in its turn. Raises _Away for an outage, whichever way it shows."""
        lane = self._lane(call.installation_id)
        key = (call.installation_id, call.path)
        queued_at_s = trio.current_time()
        async with lane.place(call.entrance), self._ways[call.purpose]:
            sent_at_s = trio.current_time()
            self._observer.waited(call.purpose, sent_at_s - queued_at_s)
            page = self._pages.find(key) if call.kept else None
            with self._through_breaker():
                answer = await self._request(call, token, page)
            self._hear(lane, call, answer, sent_at_s)
        if page is not None and answer.status == 304:
            return page
        if call.kept:
            self._pages.keep(key, answer)
        return answer

    def _lane(self, installation_id: int | None) -> Lane:
        lane = self._lanes.get(installation_id)
        if lane is None:
            lane = self._lanes[installation_id] = Lane(self._terms, self._now_s, self._chance)
        return lane

    @contextmanager
    def _through_breaker(self) -> Iterator[None]:
        passage = self._breaker.enter(trio.current_time())
        try:
            yield
        except _Away:
            with self._telling():
                self._breaker.fail(passage, trio.current_time())
            raise
        except BaseException:  # cancelled: it says nothing of GitHub
            self._breaker.abandon(passage)
            raise
        with self._telling():
            self._breaker.succeed()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say so where the body opens or closes the breaker."""
        was_open = self._breaker.is_open
        yield
        if self._breaker.is_open is not was_open:
            self._observer.breaker_changed(self._breaker.is_open)
            log.warning("github.away" if self._breaker.is_open else "github.back")

    async def _request(self, call: Call, token: str, page: Answer | None) -> Answer:
        headers = {**_HEADERS, "Authorization": f"Bearer {token}"}
        if page is not None:
            headers["If-None-Match"] = page.headers["etag"]
        root, url = str(self._http.base_url), call.path
        for _ in range(MAX_REDIRECTS):
            answer = await self._exchange(call, url, headers)
            target = urljoin(root, answer.headers.get("location", ""))
            # our token goes to no other host
            if answer.status not in _REDIRECTS or not is_same_origin(target, root):
                return answer
            url = target
        return await self._exchange(call, url, headers)

    async def _exchange(self, call: Call, url: str, headers: Mapping[str, str]) -> Answer:
        said = f"GitHub's API took longer than {REQUEST_S:g} s"
        with trio.move_on_after(REQUEST_S):
            try:
                response = await self._http.request(call.method, url, json=call.body, headers=dict(headers))
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                said = f"GitHub's API cannot be reached ({type(error).__name__})"
            else:
                self._observer.called(call.route, str(response.status_code))
                answer = Answer(response.status_code, dict(response.headers), response.content)
                if answer.status >= 500:
                    raise _Away(judge(answer, self._now_s(), self._terms.owner_retry_s, as_app=False))
                return answer
        self._observer.called(call.route, "lost")
        raise _Away(outage(said))

    def _hear(self, lane: Lane, call: Call, answer: Answer, sent_at_s: float) -> None:
        """Let the lane know what the answer says about limits."""
        elapsed_s = trio.current_time()
        lane.budget.hear_quota(answer, elapsed_s)
        problem = self._judge(call, answer)
        if problem is None or problem.kind not in _LIMITS:
            lane.budget.hear_success(sent_at_s)
            return
        told = problem.kind is ProblemKind.RATE_LIMIT or "retry-after" in answer.headers
        if lane.budget.hear_limit(problem, told, sent_at_s, elapsed_s):
            log.warning("github.slow_down", installation=call.installation_id, kind=str(problem.kind), route=call.route)


def read_answer(parse: Callable[[bytes], Value], answer: Answer) -> Value:
    """What the answer's body says; GitHub is not itself where that is none of what was asked for."""
    try:
        return parse(answer.body)
    except Refused:
        raise ForgeTrouble(outage("GitHub's answer is not the JSON that was asked for")) from None
