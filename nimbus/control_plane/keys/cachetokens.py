"""The cache token of a lease: what its machine may pull and push while the lease is held.

Minted at the grant, and anew when the agent asks with a renewal (half of the last one's life is over, or it has none).
Never kept: a lost one is asked for again. Called by leases.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from nimbus.model.lease import LeaseKey
from nimbus.wire.cachetokens import BoundLease, CacheKey, plan_claims, render_cache_token
from nimbus.wire.leaseapi import CacheToken


@dataclass(frozen=True)
class CacheTerms:
    """Which key signs, and for how long (NIMBUS_CACHE_TOKEN_TTL)."""

    key: CacheKey
    ttl_s: float = 3600.0


def mint_cache_token(terms: CacheTerms, key: LeaseKey, org_id: int) -> CacheToken:
    """A token for the org's storage that dies with this lease."""
    lease = BoundLease(key.machine_id, key.fence)
    claims = plan_claims(org_id, now_s=time.time(), ttl_s=terms.ttl_s, lease=lease)
    return CacheToken(render_cache_token(terms.key, claims), terms.ttl_s)
