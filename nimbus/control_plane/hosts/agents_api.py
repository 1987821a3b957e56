"""The agents' routes: enrol, report, lease, renew, finish. Thin: reads the token and the body, calls, renders.

The rules are leases.py's, agents.py's and silence.py's; the route that mints a runner is runners.py's. Bodies and
replies are defined in wire/leaseapi.py and wire/heartbeat.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from quart import Blueprint, request

from nimbus.control_plane.access import check_agent, read_agent, read_enrolment
from nimbus.control_plane.hosts.agents import hear_heartbeat
from nimbus.control_plane.keys.minting import mint_agent_token
from nimbus.control_plane.openapi.agents import ENROL_AGENT, FINISH_LEASE, LEASE_MACHINE, RENEW_LEASE
from nimbus.control_plane.openapi.hosts import HEAR_HEARTBEAT
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.orgs.budget import count_mint
from nimbus.control_plane.queue.leases import finish_lease, renew_lease
from nimbus.control_plane.queue.silence import enrol_agent
from nimbus.control_plane.queue.waitroom import wait_grant
from nimbus.control_plane.services import Services
from nimbus.model.errors import Refused
from nimbus.runtime.direct import DirectRoute
from nimbus.runtime.serving import App, Response, json_response, read_body
from nimbus.wire import leaseapi
from nimbus.wire.heartbeat import MAX_HEARTBEAT_BYTES, parse_heartbeat, render_heartbeat_reply
from nimbus.wire.leaseapi import EnrolReply
from nimbus.wire.vmjson import Json

log = structlog.get_logger()

HEARTBEAT, LEASE = "/api/agents/heartbeat", "/api/agents/lease"


def hear_directly(app: App, services: Services) -> None:
    """What idle hosts send passes the framework by: a thousand of them make 67 heartbeats and 50 polls a second."""

    async def hear(headers: Mapping[str, str], body: bytes) -> tuple[int, object]:
        return 200, await _hear(services, headers.get("authorization"), body)

    async def lease(headers: Mapping[str, str], body: bytes) -> tuple[int, object]:
        grant = await _lease(services, headers.get("authorization"), body)
        return (204, None) if grant is None else (200, grant)

    app.direct[HEARTBEAT] = DirectRoute(hear)
    app.direct[LEASE] = DirectRoute(lease, waits=True)


async def _lease(services: Services, authorization: str | None, body: bytes) -> Json | None:
    agent_id = await check_agent(services, authorization)
    grant = await wait_grant(services, agent_id, leaseapi.parse_lease_request(body))
    return None if grant is None else leaseapi.render_grant(grant)


async def _hear(services: Services, authorization: str | None, body: bytes) -> Json:
    agent_id = await check_agent(services, authorization)
    if len(body) > MAX_HEARTBEAT_BYTES:
        raise Refused(f"a heartbeat has at most {MAX_HEARTBEAT_BYTES} bytes")
    reply = await hear_heartbeat(services, agent_id, parse_heartbeat(body))
    return render_heartbeat_reply(reply)


def build_agents_api(services: Services) -> Blueprint:
    """The routes under /api/agents and the lease's part of /api/machines."""
    blueprint = Blueprint("agents", __name__)
    access = services.access

    @blueprint.post("/api/agents/enrol")
    @declare(ENROL_AGENT)
    async def enrol() -> Response:
        agent_id = await read_enrolment(services)
        asked = leaseapi.parse_enrol_request(await read_body())
        await count_mint(services, agent_id)
        await enrol_agent(services, agent_id, asked)
        log.info("agent.enrolled", agent=agent_id, version=asked.version, cpus=asked.cpus, mem_mib=asked.mem_mib)
        token = mint_agent_token(services.keys.current, agent_id, access.agent_token_ttl_s)
        ttl_s = services.lease_terms.policy.ttl_s
        return json_response(leaseapi.render_enrol_reply(EnrolReply(agent_id, access.agent_token_ttl_s, ttl_s, token)))

    @blueprint.post(HEARTBEAT)
    @declare(HEAR_HEARTBEAT)
    async def heartbeat() -> Response:
        return json_response(await _hear(services, request.headers.get("Authorization"), await read_body()))

    @blueprint.post(LEASE)
    @declare(LEASE_MACHINE)
    async def lease() -> Response:
        grant = await _lease(services, request.headers.get("Authorization"), await read_body())
        return Response(status=204) if grant is None else json_response(grant)

    @blueprint.post("/api/machines/<int:machine_id>/renew")
    @declare(RENEW_LEASE)
    async def renew(machine_id: int) -> Response:
        agent_id = await read_agent(services)
        asked = leaseapi.parse_renew_request(await read_body(), machine_id)
        return json_response(leaseapi.render_renew_reply(await renew_lease(services, agent_id, asked)))

    @blueprint.post("/api/machines/<int:machine_id>/finish")
    @declare(FINISH_LEASE)
    async def finish(machine_id: int) -> Response:
        agent_id = await read_agent(services)
        asked = leaseapi.parse_finish_request(await read_body(), machine_id)
        return json_response(leaseapi.render_finish_reply(await finish_lease(services, agent_id, asked)))

    return blueprint
