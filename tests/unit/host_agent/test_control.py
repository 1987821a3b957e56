"""The agent's door to the control plane: what it says when it enrols, and that it says it once."""

from __future__ import annotations

import json

import httpx2

from nimbus.host_agent.control import ControlPlane
from nimbus.wire.leaseapi import EnrolReply, EnrolRequest, LeaseRequest, render_enrol_reply

EMPTY = LeaseRequest(0.0, 1, 256, 1, ())


async def test_an_agent_gives_up_its_former_leases_when_it_starts_and_not_when_its_token_is_renewed() -> None:
    enrolled: list[object] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/api/agents/lease":
            return httpx2.Response(204)
        enrolled.append(json.loads(request.content).get("held"))
        reply = EnrolReply("one", expires_in_s=0.0, lease_ttl_s=30.0, token="a token that has run out at once")
        return httpx2.Response(200, json=render_enrol_reply(reply))

    transport = httpx2.MockTransport(answer)
    async with httpx2.AsyncClient(transport=transport, base_url="http://plane") as http:
        control = ControlPlane(http, "an enrolment token", EnrolRequest("1", "a boot", 2, 1024, held=()))
        await control.lease(EMPTY)
        await control.lease(EMPTY)
    assert enrolled == [[], None]


async def test_an_agent_outlives_its_enrolment_token_and_falls_back_to_it_when_its_own_is_refused() -> None:
    shown: list[str] = []
    refused = {"agent-2"}

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/api/agents/lease":
            return httpx2.Response(204)
        token = request.headers["authorization"].removeprefix("Bearer ")
        shown.append(token)
        if token in refused:
            return httpx2.Response(401, json={"error": "unauthorized", "message": "unknown key"})
        reply = EnrolReply("one", expires_in_s=0.0, lease_ttl_s=30.0, token=f"agent-{len(shown)}")
        return httpx2.Response(200, json=render_enrol_reply(reply))

    transport = httpx2.MockTransport(answer)
    async with httpx2.AsyncClient(transport=transport, base_url="http://plane") as http:
        control = ControlPlane(http, "enrolment", EnrolRequest("1", "a boot", 2, 1024))
        for _ in range(3):
            await control.lease(EMPTY)
    assert shown == ["enrolment", "agent-1", "agent-2", "enrolment"]
