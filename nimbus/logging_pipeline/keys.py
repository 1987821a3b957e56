"""The control plane's public keys, fetched from its key set and kept: what checks a machine's token.

A key id that is not known leads to one fetch, not more often than every few seconds, whoever asks. While the
control plane is away the keys fetched last go on working. Called by `access`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import httpx2
import structlog
import trio

from nimbus.model.errors import NimbusError, Refused, Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors
from nimbus.wire.tokens import Audience, Claims, UnknownKey, VerifyKey, parse_jwks, verify_token

MAX_AGE_S = 300.0  # what the key set's own Cache-Control says: a key taken out of it stops working after this
THROTTLE_S = 5.0
_FETCH_S = 5.0
_MAX_BYTES = 256 * 1024
log = structlog.get_logger()


class KeySet:
    """The keys of one key set URL."""

    def __init__(self, client: httpx2.AsyncClient, url: str, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._url = url
        self._clock = clock
        self._keys: tuple[VerifyKey, ...] = ()
        self._fetched = -math.inf
        self._tried = -math.inf
        self._fetching = trio.Lock()

    async def verify(self, token: str, audience: Audience) -> Claims:
        """What the token says; Unauthorized where it is not valid, Unavailable where no key could be fetched yet."""
        await self._ensure_fresh(MAX_AGE_S)
        try:
            return verify_token(token, self._keys, audience=audience, now_s=self._clock())
        except UnknownKey:
            await self._ensure_fresh(THROTTLE_S)
            return verify_token(token, self._keys, audience=audience, now_s=self._clock())

    async def _ensure_fresh(self, max_age_s: float) -> None:
        async with self._fetching:
            now = trio.current_time()
            if now - self._fetched > max_age_s and now - self._tried > THROTTLE_S:
                self._tried = now
                await self._fetch()
        if not self._keys:
            raise Unavailable("the control plane's keys could not be fetched yet: retry", retry_after_s=THROTTLE_S)

    async def _fetch(self) -> None:
        try:
            with trio.fail_after(_FETCH_S), mapped_http_errors("the control plane's key set"):
                response = check_status(await self._client.get(self._url), "the control plane's key set")
            if len(response.content) > _MAX_BYTES:
                raise Refused("the key set is too large")
            self._keys = parse_jwks(response.content)
            self._fetched = trio.current_time()
        except (NimbusError, trio.TooSlowError) as error:  # the keys at hand stay good; without any, the caller is told
            log.warning("keys.not_fetched", why=str(error) or "no answer", kept=len(self._keys))
