"""What schemathesis is told of this API beyond its document. Loaded by schemathesis itself (apifuzz.py names it).

Only the process of schemathesis imports this.
"""

from __future__ import annotations

import os
from typing import Any

import requests
import schemathesis

from nimbus.wire.fields import MAX_BIGINT
from nimbus.wire.github import render_signature

LEASE = "/api/agents/lease"
LONGEST_WAIT_S = 30.0
SHORT_WAIT_S = 0.01


class _Signature(requests.auth.AuthBase):
    """Signs a delivery as GitHub does: over the bytes that are sent."""

    def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        body = prepared.body or b""
        assert isinstance(body, str | bytes)
        raw = body.encode() if isinstance(body, str) else body
        prepared.headers["X-Hub-Signature-256"] = render_signature(os.environ["APIFUZZ_WEBHOOK_SECRET"], raw)
        return prepared


schemathesis.auth.set_from_requests(_Signature()).apply_to(path_regex="/webhooks/github$")  # type: ignore[attr-defined]


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """A body as a client of ours would write it.

    An agent that waits for work does so for a moment: each of these waits would take the time of a hundred calls.
    """
    body = write_whole(body)
    if context.operation.path == LEASE and isinstance(body, dict) and _is_long(body.get("wait_s")):
        return {**body, "wait_s": SHORT_WAIT_S}
    return body


def _is_long(wait_s: object) -> bool:
    """Whether it is a wait that the API takes, and a long one."""
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float):
        return False
    return SHORT_WAIT_S < wait_s <= LONGEST_WAIT_S


def write_whole(value: Any) -> Any:
    """Whole numbers without a fraction: JSON Schema takes 3.0 for an integer, and no parser of ours does."""
    if isinstance(value, dict):
        return {name: write_whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [write_whole(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_BIGINT:
        return int(value)
    return value
