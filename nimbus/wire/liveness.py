"""What the control plane says of a lease, as a value: whether tokens that are bound to it still open anything.

Never opens a connection. Written by control_plane/keys/revocation.py, read by runtime/liveness.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from nimbus.wire.fields import Fields, parse_object
from nimbus.wire.vmjson import Json


@dataclass(frozen=True)
class LeaseStanding:
    """`left_s` is how long the lease lasts unless it is renewed, or ended early; by no clock but Postgres'."""

    alive: bool
    org_id: int | None = None
    until_ms: int | None = None
    left_s: float = 0.0


def lease_path(machine_id: int, fence: int) -> str:
    """Where a service asks."""
    return f"/api/internal/leases/{machine_id}/{fence}"


def render_standing(standing: LeaseStanding) -> Json:
    return {
        "alive": standing.alive,
        "org_id": standing.org_id,
        "until_ms": standing.until_ms,
        "left_s": standing.left_s,
    }


def parse_standing(body: bytes) -> LeaseStanding:
    fields: Fields = parse_object(body, "lease standing")
    return LeaseStanding(
        alive=fields.boolean("alive"),
        org_id=fields.integer("org_id") if fields.has("org_id") else None,
        until_ms=fields.integer("until_ms") if fields.has("until_ms") else None,
        left_s=fields.number("left_s"),
    )
