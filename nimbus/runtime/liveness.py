"""Whether the lease that a token is bound to is alive, asked of the control plane and remembered for a few seconds.

A token says until when it may live; whether it still does, only the control plane knows. While that is away, writes
are refused: what a machine without a lease stores, others would run. Reads go on for as long as the lease was said to
last, so that a running job survives an outage: it reads what its org could read anyway. A lease that nobody ever
asked about here opens nothing. Used by the services that take cache tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2
import structlog
import trio

from nimbus.model.errors import NimbusError, Unauthorized, Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors
from nimbus.wire.cachetokens import BoundLease, CacheClaims
from nimbus.wire.liveness import LeaseStanding, lease_path, parse_standing

log = structlog.get_logger()

CACHE_S = 10.0  # a machine whose lease has ended opens nothing after this
ASK_S = 2.0
AGAIN_S = 1.0  # after a question without an answer: others would wait as long for nothing
MOST = 10_000  # leases remembered at once, some hundred bytes each
SERVICE = "the control plane"


@dataclass
class _Known:
    """What was last said of one lease. Whoever asks while a question is under way waits for its answer."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    standing: LeaseStanding | None = None
    asked_s: float = 0.0

    def is_fresh(self, now_s: float, cache_s: float) -> bool:
        return self.standing is not None and now_s - self.asked_s < cache_s

    def lasts(self, now_s: float) -> bool:
        """Whether the lease was said to last until now, ended early or not."""
        return self.standing is not None and self.standing.alive and now_s - self.asked_s < self.standing.left_s


class Liveness:
    """What leases are said to be. `client` speaks to the control plane; `mint` makes a token for one question."""

    def __init__(self, client: httpx2.AsyncClient, mint: Callable[[], str], cache_s: float = CACHE_S) -> None:
        self._client = client
        self._mint = mint
        self._cache_s = cache_s
        self._known: dict[BoundLease, _Known] = {}
        self._away_until_s = 0.0

    async def require(self, claims: CacheClaims, *, writes: bool) -> None:
        """Unauthorized where the token's lease has ended or is another org's, Unavailable where nobody can tell."""
        if claims.lease is None:
            await trio.lowlevel.checkpoint()
            return
        standing = await self._find(claims.lease, writes=writes)
        if not standing.alive or standing.org_id != claims.org_id:
            raise Unauthorized("the job of this token has ended, and the token with it")

    async def _find(self, lease: BoundLease, *, writes: bool) -> LeaseStanding:
        known = self._remember(lease)
        async with known.lock:
            if not known.is_fresh(trio.current_time(), self._cache_s):
                try:
                    await self._refresh(lease, known)
                except Unavailable:
                    if writes or not known.lasts(trio.current_time()):
                        raise
            assert known.standing is not None  # noqa: S101 - fresh, refreshed or lasting
            return known.standing

    def _remember(self, lease: BoundLease) -> _Known:
        known = self._known.pop(lease, None) or _Known()
        self._known[lease] = known  # the last in line: the one that nobody asked about for longest goes first
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        return known

    async def _refresh(self, lease: BoundLease, known: _Known) -> None:
        asked_s = trio.current_time()
        if asked_s < self._away_until_s:
            raise Unavailable(f"{SERVICE} is away, and only it knows whether this job still runs: retry", AGAIN_S)
        try:
            known.standing = await self._ask(lease)
        except Unavailable:
            self._away_until_s = trio.current_time() + AGAIN_S
            raise
        known.asked_s = asked_s

    async def _ask(self, lease: BoundLease) -> LeaseStanding:
        headers = {"Authorization": f"Bearer {self._mint()}"}
        try:
            with trio.fail_after(ASK_S), mapped_http_errors(SERVICE):
                response = await self._client.get(lease_path(lease.machine_id, lease.fence), headers=headers)
                return parse_standing(check_status(response, SERVICE).content)
        except (NimbusError, trio.TooSlowError) as error:  # a refusal is ours to mend, and never the client's fault
            log.warning("liveness.not_told", machine=lease.machine_id, reason=str(error) or "no answer")
            raise Unavailable(f"{SERVICE} does not say whether this job still runs: retry", AGAIN_S) from error
