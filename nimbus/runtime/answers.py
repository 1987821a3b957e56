"""The one form of an answer, and the one table from errors to HTTP. No framework here; called by serving and direct."""

from __future__ import annotations

import json
import math

import structlog

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

log = structlog.get_logger()

# One table from errors to HTTP, the most specific first: (type, status, code).
ERROR_STATUS: tuple[tuple[type[NimbusError], int, str], ...] = (
    (Unauthorized, 401, "unauthorized"),
    (Forbidden, 403, "forbidden"),
    (NotFound, 404, "not_found"),
    (Refused, 400, "refused"),
    (Fenced, 409, "fenced"),
    (Conflict, 409, "conflict"),
    (Gone, 410, "unneeded"),
    (RateLimited, 429, "rate_limited"),
    (Unavailable, 503, "unavailable"),
)


def judge_error(error: Exception) -> tuple[int, str, str, dict[str, str]]:
    """Status, code, message and headers of the answer to an error; whatever the table does not know is a bug."""
    for kind, status, code in ERROR_STATUS:
        if isinstance(error, kind):
            return status, code, str(error), _headers_of(error)
    log.error("request.crashed", kind=type(error).__name__, exc_info=error)
    return 500, "internal", "a bug of ours: the log of the service says more", {}


def _headers_of(error: Exception) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, Unavailable):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}  # sooner would be too soon
    return {}


def render_json(body: object) -> str:
    return json.dumps(body, separators=(",", ":"))
