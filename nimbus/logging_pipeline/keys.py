"""The control plane's public keys, fetched from its key set and kept: what checks a machine's token.

They are kept for as long as the control plane says (Cache-Control), and looked up once more, not more often than every
few seconds whoever asks, where a token names a key that is not among them. While the control plane is away the keys
fetched last go on working. Called by `access`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Literal

import httpx2
import structlog
import trio

from nimbus.model.errors import NimbusError, Refused, Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors
from nimbus.wire.tokens import Audience, Claims, UnknownKey, VerifyKey, parse_jwks, verify_token

MAX_AGE_S = 300.0  # where the key set does not say: a key taken out of it stops working after this
LONGEST_S = 86_400.0
THROTTLE_S = 2.0  # between two looks for a key, and after one that failed
_FETCH_S = 5.0
_MAX_BYTES = 256 * 1024
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})(?:$|[,\s])", re.IGNORECASE)
NOT_MODIFIED = 304
_SERVICE = "the control plane's key set"
log = structlog.get_logger()


class KeySet:
    """The keys of one key set URL."""

    def __init__(self, client: httpx2.AsyncClient, url: str, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._url = url
        self._clock = clock
        self._keys: tuple[VerifyKey, ...] = ()
        self._tag: str | None = None
        self._max_age_s = MAX_AGE_S
        self._fetched = -math.inf
        self._tried = -math.inf
        self._looks = 0  # begun so far; the last that succeeded is `_good_look`
        self._good_look = 0
        self._away = False  # the last look that ended has failed
        self._fetching = trio.Lock()

    @property
    def state(self) -> Literal["fresh", "kept", "none"]:
        """As operators read it: fetched, in use although the control plane is away, or none to check a token with."""
        if not self._keys:
            return "none"
        return "kept" if self._away else "fresh"

    async def verify(self, token: str, audience: Audience) -> Claims:
        """What the token says; Unauthorized where it is not valid, Unavailable where its key could not be fetched."""
        await self._ensure_fresh()
        try:
            return verify_token(token, self._keys, audience=audience, now_s=self._clock())
        except UnknownKey:
            await self._look_again()
            return verify_token(token, self._keys, audience=audience, now_s=self._clock())

    async def _ensure_fresh(self) -> None:
        # known to be away: one request tries, and the others go on with what is at hand
        left_to_another = self._away and self._keys and self._fetching.locked()
        if self._is_stale() and not left_to_another:
            async with self._fetching:
                if self._is_stale():
                    await self._fetch()
        if not self._keys:
            raise Unavailable("the control plane's keys could not be fetched yet: retry", retry_after_s=THROTTLE_S)

    def _is_stale(self) -> bool:
        now = trio.current_time()
        return now - self._fetched > self._max_age_s and not (self._away and now - self._tried <= THROTTLE_S)

    async def _look_again(self) -> None:
        """The key may be younger than the last look. An agent takes a refusal for the end, so waiting is better."""
        seen = self._looks
        await trio.sleep(max(self._tried + THROTTLE_S - trio.current_time(), 0.0))
        async with self._fetching:
            if self._looks == seen:  # else somebody has looked while we waited
                await self._fetch()
        if self._good_look <= seen:
            raise Unavailable("the token's key could not be looked up: retry", retry_after_s=THROTTLE_S)

    async def _fetch(self) -> None:
        self._tried = trio.current_time()
        self._looks += 1
        headers = {} if self._tag is None else {"If-None-Match": self._tag}
        try:
            with trio.fail_after(_FETCH_S), mapped_http_errors(_SERVICE):
                response = check_status(await self._client.get(self._url, headers=headers), _SERVICE)
            if len(response.content) > _MAX_BYTES:
                raise Refused("the key set is too large")
            if response.status_code != NOT_MODIFIED:
                self._keys = parse_jwks(response.content)
                self._tag = response.headers.get("etag")
            self._max_age_s = read_max_age_s(response.headers.get("cache-control", ""))
            self._fetched, self._good_look, self._away = trio.current_time(), self._looks, False
        except (NimbusError, trio.TooSlowError) as error:  # the keys at hand stay good; without any, the caller is told
            self._tried, self._away = trio.current_time(), True  # it may have hung: those who waited go on
            log.warning("keys.not_fetched", why=str(error) or "no answer", kept=len(self._keys))


def read_max_age_s(header: str) -> float:
    """How long a key set may be kept, as its Cache-Control says."""
    told = _MAX_AGE.search(header)
    return MAX_AGE_S if told is None else min(max(float(told[1]), 1.0), LONGEST_S)
