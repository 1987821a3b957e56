"""Requests of `nimbus logs` to the logging pipeline: pages, hits, streams, downloads. Prints nothing of a job's.

A token is made anew for each request where none was given, so that long output outlives it. A stream that breaks goes
on from the last row that was told. Called by `nimbus logs` and `nimbus report`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlencode

import httpx2
import trio

from nimbus.cli.access import choose_token
from nimbus.model.errors import NotFound, Unauthorized, Unavailable
from nimbus.runtime.http import READ_S, check_status, mapped_http_errors, open_http
from nimbus.runtime.retry import Backoff, retry_unavailable
from nimbus.wire.tokens import Audience

SERVICE = "the logging pipeline"
DEFAULT_URL = "http://127.0.0.1:8002"
SILENCE_S = 45.0  # three missed heartbeats: the connection is dead
MAX_TRIES = 10  # in a row, without a row between them: about a minute
PAGE_ROWS = 1000
PAGE_ATTEMPTS = 5
Reply = dict[str, Any]
Query = Mapping[str, str]


class LogReader:
    """One logging pipeline, and how this command shows who it is."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._token = token
        self.credential()  # a missing one is told before any connection

    def credential(self) -> str:
        return choose_token(self._token, Audience.LOGS_READ)

    @property
    def _token_is_given(self) -> bool:
        return self._token is not None and self._token.count(".") == 2

    @asynccontextmanager
    async def open(self, read_s: float = READ_S) -> AsyncIterator[httpx2.AsyncClient]:
        """A client whose every request is signed anew."""
        async with open_http(self._url, read_s=read_s) as http:
            http.auth = self._sign
            yield http

    def _sign(self, request: httpx2.Request) -> httpx2.Request:
        request.headers["Authorization"] = f"Bearer {self.credential()}"
        return request

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Adds the next command to the errors that a newcomer meets."""
        try:
            with mapped_http_errors(SERVICE):
                yield
        except NotFound as error:
            raise NotFound(f"{error}; the newest jobs are listed by: nimbus jobs recent") from error
        except Unavailable as error:
            if not isinstance(error.__cause__, httpx2.RequestError):  # it answered, and says itself what is wrong
                raise
            raise Unavailable(f"{error} ({self._url}; start one by: nimbus up)", error.retry_after_s) from error

    async def get(self, http: httpx2.AsyncClient, path: str, query: Query) -> Reply:
        """One answer, which must be an object."""
        with self.explained():
            response = check_status(await http.get(f"{path}?{urlencode(query)}" if query else path), SERVICE)
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise Unavailable(f"{SERVICE} gave an answer that is none of its own: is {self._url} really one?")
        return reply

    async def pages(self, path: str, query: Query, what: str, limit: int | None) -> AsyncGenerator[Reply, None]:
        """Page by page until there are no more, or `limit` entries have come."""
        left, cursor, more = limit, "", True
        async with self.open() as http:
            while more and left != 0:
                count = PAGE_ROWS if left is None else min(PAGE_ROWS, left)
                asked = {**query, "limit": str(count)} | ({"after": cursor} if cursor else {})
                ask = partial(self.get, http, path, asked)
                # what began is not broken off by a restart or by a busy moment
                page = await (retry_unavailable(ask, Backoff(), PAGE_ATTEMPTS) if cursor else ask())
                if not isinstance(page.get(what), list):
                    raise Unavailable(f"{SERVICE} gave an answer that is none of its own: is {self._url} really one?")
                yield page
                cursor, more = page["next"] or "", bool(page["more"]) and bool(page["next"])
                left = None if left is None else max(0, left - len(page[what]))

    async def follow(self, path: str, cursor: str) -> AsyncGenerator[tuple[str, Reply], None]:
        """(kind, data) of events until the stream says that this was all, connecting again where it breaks."""
        tries, delays = 0, Backoff(base_s=0.3, max_s=10).delays_s()
        while True:
            before, why = cursor, ""
            try:
                async with self.open(SILENCE_S) as http, aclosing(self._stream(http, path, cursor)) as events:
                    async for kind, event_id, data in events:
                        cursor = event_id or cursor
                        why = str(data.get("why", "")) if kind == "end" else why
                        yield kind, data
                if why == "complete":
                    return
                self._check_end(why)
            except Unavailable:
                tries, delays = (tries + 1, delays) if cursor == before else (1, Backoff(0.3, 10).delays_s())
                if tries >= MAX_TRIES:
                    raise
                await trio.sleep(next(delays))

    def _check_end(self, why: str) -> None:
        """A stream that ended before the output did goes on with a new token, where one can be had."""
        if why == "revoked":
            raise Unauthorized("the token was revoked: mint a new one to read on")
        if self._token_is_given:
            raise Unauthorized("the token given by --token ran out: mint a new one to read on")

    async def _stream(
        self, http: httpx2.AsyncClient, path: str, cursor: str
    ) -> AsyncGenerator[tuple[str, str, Reply], None]:
        """(kind, id, data) of each event of one connection; Unavailable where it breaks."""
        headers = {"Last-Event-ID": cursor} if cursor else {}
        with self.explained():
            async with http.stream("GET", f"{path}/follow", headers=headers) as response:
                if response.status_code >= 400:
                    await response.aread()
                    check_status(response, SERVICE)
                kind, event_id, data, ended = "row", "", "", False
                async for line in response.aiter_lines():  # to its end: an iterator left early is never closed
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "id":
                        event_id = value
                    elif name == "data":
                        data = value
                    elif not line and data:
                        yield kind, event_id, json.loads(data)
                        ended = ended or kind == "end"
                        kind, event_id, data = "row", "", ""
        if not ended:
            raise Unavailable(f"{SERVICE} closed the stream")

    async def download(
        self, path: str, query: Query, write: Callable[[bytes], object], tell: Callable[[int, int | None], None]
    ) -> int:
        """The whole of some output, chunk by chunk to `write`; how many bytes it was. `tell` hears how far it came."""
        done = 0
        async with self.open() as http:
            with self.explained():
                async with http.stream("GET", f"{path}/download?{urlencode(query)}") as response:
                    if response.status_code >= 400:
                        await response.aread()
                        check_status(response, SERVICE)
                    size = response.headers.get("content-length", "")
                    whole = int(size) if size.isdigit() and "content-encoding" not in response.headers else None
                    async for chunk in response.aiter_bytes():
                        write(chunk)
                        done += len(chunk)
                        tell(done, whole)
        return done
