"""The control plane's internal routes, asked as a service: one short-lived token for each question.

Whatever goes wrong is Unavailable: none of it is the fault of whoever waits for the answer. Called by `directory`,
`revoked` and whoever else asks the control plane for what only it knows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import httpx2
import trio

from nimbus.model.errors import Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors
from nimbus.wire.tokens import Audience, SigningKey, render_token

SERVICE = "the control plane"
_ASK_S = 5.0
_TOKEN_TTL_S = 300.0
_SUBJECT = "service:logs"
_OTHERS = (304, 404)  # what a caller asks about; every other refusal is trouble between the two services


class Plane:
    """The control plane as this service sees it."""

    def __init__(self, client: httpx2.AsyncClient, url: str, key: SigningKey) -> None:
        self._client = client
        self._url = url.rstrip("/")
        self._key = key

    async def ask(self, path: str, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """The answer to a GET: a success, 304 or 404. Unavailable for all else."""
        token = render_token(
            self._key, subject=_SUBJECT, audience=Audience.INTERNAL, now_s=time.time(), ttl_s=_TOKEN_TTL_S
        )
        told = {"Authorization": f"Bearer {token}", **(headers or {})}
        with trio.move_on_after(_ASK_S), mapped_http_errors(SERVICE):
            response = await self._client.get(f"{self._url}{path}", headers=told)
            if response.status_code in (401, 403):  # our own credential: the reader cannot mend it
                raise Unavailable("the control plane refuses the logging pipeline: compare their NIMBUS_JWT_SECRET")
            return response if response.status_code in _OTHERS else check_status(response, SERVICE)
        raise Unavailable("the control plane does not answer: retry")
