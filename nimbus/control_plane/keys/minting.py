"""The tokens that our own keys sign, an agent's and a machine's. Never verifies one. Called by routes and leases.py."""

from __future__ import annotations

import time

from nimbus.control_plane.keys.ring import KeyRing, Purpose
from nimbus.model.lease import LeaseKey
from nimbus.wire.tokens import Audience, render_token

MACHINE_TOKEN_TTL_S = 24 * 3600.0  # output may still be in a host's spool long after the job


def mint_agent_token(keys: KeyRing, agent_id: str, ttl_s: float) -> str:
    """What an enrolled agent shows on every request."""
    signing = keys.signing(Purpose.AGENT)
    return render_token(signing, subject=agent_id, audience=Audience.AGENT, now_s=time.time(), ttl_s=ttl_s)


def mint_machine_token(keys: KeyRing, key: LeaseKey, org_id: int, agent_id: str) -> str:
    """What lets one machine's output of one lease into the logging pipeline."""
    claims = {"org_id": org_id, "machine_id": key.machine_id, "fence": key.fence, "agent_id": agent_id}
    return render_token(
        keys.signing(Purpose.MACHINE),
        subject=f"machine:{key.machine_id}",
        audience=Audience.LOGS,
        now_s=time.time(),
        ttl_s=MACHINE_TOKEN_TTL_S,
        claims=claims,
    )
