"""The one way Nimbus speaks HTTP as a client: httpx2 on Trio, foreign errors mapped once.

httpx2 is the maintained line of httpx with the same interface (docs/decisions). Never follows redirects by
itself, never retries, never reads proxy variables. Called by the agent, the logging pipeline and the CLI.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cache

import httpx2

from nimbus.model.errors import (
    Conflict,
    Fenced,
    Forbidden,
    Gone,
    NimbusError,
    NotFound,
    RateLimited,
    Refused,
    Unauthorized,
    Unavailable,
)

CONNECT_S = 10.0
READ_S = 60.0  # above the longest long poll (30 s); streams pass their own
KEEP_S = 50.0  # of a connection that nobody uses: heartbeats are 30 s apart at most, and our servers keep it for 75 s
_POOL = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=KEEP_S)
_USER_AGENT = "nimbus"
_BY_STATUS: dict[int, type[NimbusError]] = {
    400: Refused,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: Refused,
    422: Refused,
}


@asynccontextmanager
async def open_http(
    base_url: str = "", *, token: str | None = None, read_s: float | None = READ_S
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client for one service; `read_s` None waits for ever (for streams under the caller's scope)."""
    headers = {"User-Agent": _USER_AGENT}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    limits = httpx2.Timeout(connect=CONNECT_S, read=read_s, write=READ_S, pool=READ_S)
    async with httpx2.AsyncClient(
        base_url=base_url,
        headers=headers,
        timeout=limits,
        limits=_POOL,
        follow_redirects=False,
        trust_env=False,
        verify=_load_trust(),
    ) as client:
        yield client


@cache
def _load_trust() -> ssl.SSLContext:
    """Whom we trust, read once: it takes 50 ms, in which nothing else runs, and an agent opens a client for each VM."""
    return httpx2.create_ssl_context(trust_env=False)


@contextmanager
def mapped_http_errors(service: str) -> Iterator[None]:
    """Turn a transport failure into Unavailable; the message names the service and never the URL's query."""
    try:
        yield
    except httpx2.InvalidURL as error:
        raise Refused(f"the address of {service} is no URL") from error
    except httpx2.RequestError as error:  # the transport's, or an answer that is not in the encoding it claims
        raise Unavailable(f"{service} cannot be reached ({type(error).__name__}): is it running?") from error


def check_status(response: httpx2.Response, service: str) -> httpx2.Response:
    """The response itself where it is a success; else the error by who must act. The body must have been read."""
    status = response.status_code
    if status < 400:
        return response
    code, message = _error_of(response)
    if status == 409 and code == "fenced":
        raise Fenced(message or f"{service} says that the lease belongs to another")
    text = message or f"{service} answered {status}"
    if status == 429:
        raise RateLimited(text, _retry_after_s(response.headers))
    if status >= 500:
        raise Unavailable(text, _retry_after_s(response.headers))
    raise _BY_STATUS.get(status, Refused)(text)


def _error_of(response: httpx2.Response) -> tuple[str, str]:
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(body, dict):
        return "", ""
    return str(body.get("error", ""))[:64], str(body.get("message", ""))[:500]


def _retry_after_s(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 5.0
