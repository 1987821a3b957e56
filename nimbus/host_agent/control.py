"""The control plane as the agent sees it: enrol, report, lease, renew, mint, finish. One method for each route.

Keeps the short-lived agent token fresh by itself; never retries anything else (callers decide) and never
talks to GitHub or a database. Errors come mapped: Fenced, Unavailable, Gone, Unauthorized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import httpx2
import trio

from nimbus.model.errors import Unauthorized
from nimbus.model.lease import LeaseKey
from nimbus.runtime.http import CONNECT_S, READ_S, check_status, mapped_http_errors
from nimbus.wire import leaseapi
from nimbus.wire.heartbeat import Heartbeat, HeartbeatReply, parse_heartbeat_reply, render_heartbeat
from nimbus.wire.leaseapi import EnrolRequest, FinishRequest, Grant, LeaseRequest, RenewReply, RenewRequest
from nimbus.wire.vmjson import Json

SERVICE = "the control plane"
REFRESH_EARLY_S = 60.0
# What the control plane answers from its own rows; a lease is waited for, and a runner comes from the forge.
PROMPT = httpx2.Timeout(20.0, connect=CONNECT_S)
PATIENT = httpx2.Timeout(READ_S, connect=CONNECT_S)


@dataclass
class _Token:
    text: str = ""
    until: float = -math.inf


class ControlPlane:
    """One agent's door to the control plane. Safe to use from any number of tasks."""

    def __init__(self, http: httpx2.AsyncClient, enrolment_token: str, who: EnrolRequest) -> None:
        self._http = http
        self._enrolment_token = enrolment_token
        self._who = who
        self._token = _Token()
        self._enrolling = trio.Lock()
        self.lease_ttl_s = 300.0

    async def enrol(self) -> None:
        """A new short token for the present one, or for the enrolment token where there is none that still counts.

        Raises Unauthorized where neither is accepted.
        """
        try:
            reply = await self._exchange(self._token.text or self._enrolment_token)
        except Unauthorized:
            if not self._token.text:
                raise
            reply = await self._exchange(self._enrolment_token)
        self.lease_ttl_s = reply.lease_ttl_s
        early_s = min(REFRESH_EARLY_S, reply.expires_in_s / 2)
        self._token = _Token(reply.token, trio.current_time() + reply.expires_in_s - early_s)
        self._who = replace(self._who, held=None)  # said once: said again, it would give up what was leased since

    async def _exchange(self, token: str) -> leaseapi.EnrolReply:
        with mapped_http_errors(SERVICE):
            response = await self._http.post(
                "/api/agents/enrol",
                json=leaseapi.render_enrol_request(self._who),
                headers={"Authorization": f"Bearer {token}"},
                timeout=PROMPT,
            )
        return leaseapi.parse_enrol_reply(check_status(response, SERVICE).content)

    async def lease(self, request: LeaseRequest) -> Grant | None:
        """Wait for a machine request for up to `request.wait_s`; None where there was none."""
        response = await self._post("/api/agents/lease", leaseapi.render_lease_request(request))
        return None if response.status_code == 204 else leaseapi.parse_grant(response.content)

    async def renew(self, request: RenewRequest) -> RenewReply:
        """Move the lease's end. Raises Fenced where it belongs to another."""
        path = f"/api/machines/{request.key.machine_id}/renew"
        response = await self._post(path, leaseapi.render_renew_request(request), PROMPT)
        return leaseapi.parse_renew_reply(response.content)

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Tell of this host; what is wanted of it. Renews nothing."""
        response = await self._post("/api/agents/heartbeat", render_heartbeat(beat), PROMPT)
        return parse_heartbeat_reply(response.content)

    async def mint_runner(self, key: LeaseKey) -> leaseapi.RunnerReply:
        """A runner's registration for the guest of this lease. Raises Gone where nobody needs it any more."""
        response = await self._post(f"/api/machines/{key.machine_id}/runner", leaseapi.render_runner_request(key))
        return leaseapi.parse_runner_reply(response.content)

    async def finish(self, request: FinishRequest) -> None:
        """Report the end. Idempotent: the same lease may say it again."""
        path = f"/api/machines/{request.key.machine_id}/finish"
        await self._post(path, leaseapi.render_finish_request(request), PROMPT)

    async def _post(self, path: str, body: Json, limits: httpx2.Timeout = PATIENT) -> httpx2.Response:
        await self._ensure_token()
        try:
            return await self._post_once(path, body, limits)
        except Unauthorized:
            # The key was rotated or the plane was rebuilt: one new enrolment, then its word is final.
            self._token = _Token()
            await self._ensure_token()
            return await self._post_once(path, body, limits)

    async def _post_once(self, path: str, body: Json, limits: httpx2.Timeout) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self._token.text}"}
        with mapped_http_errors(SERVICE):
            response = await self._http.post(path, json=body, headers=headers, timeout=limits)
        return check_status(response, SERVICE)

    async def _ensure_token(self) -> None:
        async with self._enrolling:
            if trio.current_time() >= self._token.until:
                await self.enrol()
