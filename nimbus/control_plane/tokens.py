"""The Ed25519 keys that sign agent and machine tokens, and the tokens themselves.

The private key is generated once and kept in `signing_keys`, or given by NIMBUS_SIGNING_KEY. Never logs or returns
a private key. Called by app.py (open), the routes (mint) and access.py (verify).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from nimbus.model.lease import LeaseKey
from nimbus.runtime.postgres import Database, Transaction, load_queries
from nimbus.wire.tokens import (
    Audience,
    SigningKey,
    VerifyKey,
    load_ed25519_key,
    new_ed25519_key,
    render_private_pem,
    render_token,
)

MACHINE_TOKEN_TTL_S = 24 * 3600.0  # output may still be in a host's spool long after the job

_SQL = load_queries("nimbus.control_plane", "queries", "keys.sql")


@dataclass(frozen=True)
class KeyRing:
    """The key that signs, and every key whose tokens are still accepted."""

    signing: SigningKey
    accepted: tuple[VerifyKey, ...]


async def open_keyring(database: Database, given_pem: str | None = None) -> KeyRing:
    """The keys in the database, a first one made where there is none; a given key signs in their stead."""
    if given_pem is not None:
        given = load_ed25519_key(given_pem)
        return KeyRing(given, (given.verify_key(),))
    keys = [load_ed25519_key(pem) for pem in await database.run(_ensure_key)]
    return KeyRing(keys[0], tuple(key.verify_key() for key in keys))


async def _ensure_key(transaction: Transaction) -> list[str]:
    await transaction.execute(_SQL["lock_keys"])
    rows = await transaction.fetch(_SQL["accepted_keys"])
    if not rows:
        key = new_ed25519_key()
        await transaction.execute(_SQL["insert_key"], key.kid, render_private_pem(key))
        rows = await transaction.fetch(_SQL["accepted_keys"])
    return [row["private_pem"] for row in rows]


def mint_agent_token(keys: KeyRing, agent_id: str, ttl_s: float) -> str:
    """What an enrolled agent shows on every request."""
    return render_token(keys.signing, subject=agent_id, audience=Audience.AGENT, now_s=time.time(), ttl_s=ttl_s)


def mint_machine_token(keys: KeyRing, key: LeaseKey, org_id: int, agent_id: str) -> str:
    """What lets one machine's output of one lease into the logging pipeline."""
    claims = {"org_id": org_id, "machine_id": key.machine_id, "fence": key.fence, "agent_id": agent_id}
    return render_token(
        keys.signing,
        subject=f"machine:{key.machine_id}",
        audience=Audience.LOGS,
        now_s=time.time(),
        ttl_s=MACHINE_TOKEN_TTL_S,
        claims=claims,
    )
