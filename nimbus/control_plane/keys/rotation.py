"""How keys change: the first ones made, the next published before it signs, the last dropped, one revoked at once.

Each change is one transaction under one lock, by PostgreSQL's clock. Private halves are deleted when they sign no more.
Never signs. Called by app.py (`open_keychain`, `sweep_keys`) and by the admin routes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import structlog
import trio

from nimbus.control_plane.keys.minting import MACHINE_TOKEN_TTL_S
from nimbus.control_plane.keys.ring import KEYS, Keychain, KeyRing, KeyTerms, Purpose, Role, parse_ring, plan_given_ring
from nimbus.control_plane.services import Services
from nimbus.model.errors import Conflict, Unavailable
from nimbus.runtime.postgres import Database, Transaction, load_queries
from nimbus.wire.tokens import (
    SKEW_S,
    load_ed25519_key,
    new_ed25519_key,
    render_private_pem,
    render_public_key,
)

log = structlog.get_logger()

# A token may be stamped by a clock that is ahead, and is believed for the same time again where it is checked.
OVERLAP_S = 2 * SKEW_S

_SQL = load_queries("nimbus.control_plane", "queries", "keys.sql")


@dataclass(frozen=True)
class GivenKeys:
    """NIMBUS_SIGNING_KEY and what is accepted beside it, as PEM: then nothing of the database's is used."""

    current: str
    next: str | None = None
    previous: str | None = None


@dataclass(frozen=True)
class Rotation:
    """A family's next key. `made` False: it was there already."""

    purpose: Purpose
    kid: str
    signs_in_s: float
    made: bool


@dataclass(frozen=True)
class Revocation:
    """A key's end. `signs` is the key of its family that signs from now on."""

    purpose: Purpose
    kid: str
    was: Role
    signs: str


def life_s(purpose: Purpose, terms: KeyTerms) -> float:
    """How long a token of this family may be good at most, by whichever clock."""
    lives = {Purpose.AGENT: terms.agent_token_ttl_s, Purpose.MACHINE: MACHINE_TOKEN_TTL_S}
    return lives[purpose] + OVERLAP_S


# --- the first keys ----------------------------------------------------------------------------------------------


async def open_keychain(database: Database, terms: KeyTerms, given: GivenKeys | None = None) -> Keychain:
    """The keys in the database, the first ones made where there are none; given keys are used in their stead."""
    if given is not None:
        others = (None if pem is None else load_ed25519_key(pem) for pem in (given.next, given.previous))
        return Keychain(database, terms, plan_given_ring(load_ed25519_key(given.current), *others), given=True)
    return Keychain(database, terms, await database.run(_ensure_keys))


async def _ensure_keys(transaction: Transaction) -> KeyRing:
    ring = await _lock_ring(transaction)
    missing = [purpose for purpose in Purpose if ring.find_current(purpose) is None]
    for purpose in missing:
        await _insert_key(transaction, purpose, 0.0)
    return await _read_ring(transaction) if missing else ring


async def _lock_ring(transaction: Transaction) -> KeyRing:
    await transaction.execute(_SQL["lock_keys"])
    return await _read_ring(transaction)


async def _read_ring(transaction: Transaction) -> KeyRing:
    return parse_ring(await transaction.fetch(_SQL["read_keys"]))


async def _insert_key(transaction: Transaction, purpose: Purpose, lead_s: float) -> str:
    key = new_ed25519_key()
    public = render_public_key(key.verify_key())
    await transaction.execute(_SQL["publish_key"], key.kid, purpose, render_private_pem(key), public, lead_s)
    return key.kid


# --- rotation ----------------------------------------------------------------------------------------------------


async def rotate_keys(services: Services, purposes: Iterable[Purpose]) -> list[Rotation]:
    """Publish the next key of these families; each signs when every verifier can know it."""
    _refuse_given(services.keys, "rotated")
    rotations = await services.database.run(_rotate, tuple(purposes), services.keys.terms)
    for rotation in rotations:
        if rotation.made:
            log.info("key.published", family=rotation.purpose, kid=rotation.kid, signs_in_s=rotation.signs_in_s)
    await _tell(services)
    return rotations


async def _rotate(transaction: Transaction, purposes: tuple[Purpose, ...], terms: KeyTerms) -> list[Rotation]:
    ring = await _lock_ring(transaction)
    return [await _publish_next(transaction, ring, purpose, terms) for purpose in purposes]


async def _publish_next(transaction: Transaction, ring: KeyRing, purpose: Purpose, terms: KeyTerms) -> Rotation:
    coming = ring.find_next(purpose)
    if coming is not None:
        return Rotation(purpose, coming.verify.kid, coming.signs_from_s - ring.now_s, made=False)
    lives_s = (life_s(purpose, terms), max(life_s(each, terms) for each in Purpose))
    await transaction.execute(_SQL["end_signing"], purpose, terms.publish_lead_s, *lives_s)
    kid = await _insert_key(transaction, purpose, terms.publish_lead_s)
    return Rotation(purpose, kid, terms.publish_lead_s, made=True)


# --- revocation --------------------------------------------------------------------------------------------------


async def revoke_key(services: Services, kid: str) -> Revocation:
    """Accept nothing more of this key, whatever it signed; where it signed, another does at once."""
    _refuse_given(services.keys, "revoked")
    revocation = await services.database.run(_revoke, kid)
    log.warning("key.revoked", family=revocation.purpose, kid=kid, was=revocation.was, signs=revocation.signs)
    await _tell(services)
    return revocation


async def _revoke(transaction: Transaction, kid: str) -> Revocation:
    ring = await _lock_ring(transaction)
    key = ring.find(kid)
    role, purpose = ring.role(key), key.purpose
    current, coming = ring.find_current(purpose), ring.find_next(purpose)
    signs = "" if current is None else current.verify.kid
    if role in {Role.REVOKED, Role.DROPPED}:
        return Revocation(purpose, kid, role, signs)
    await transaction.execute(_SQL["revoke_key"], kid, render_public_key(key.verify))
    if role is Role.NEXT:
        await transaction.execute(_SQL["go_on_signing"], signs)
    elif role is Role.CURRENT and coming is not None:
        signs = coming.verify.kid  # verifiers know it already
        await transaction.execute(_SQL["sign_now"], signs)
    elif role is Role.CURRENT:
        signs = await _insert_key(transaction, purpose, 0.0)
    return Revocation(purpose, kid, role, signs)


def _refuse_given(keys: Keychain, what: str) -> None:
    if keys.given:
        raise Conflict(
            f"the key is given by NIMBUS_SIGNING_KEY and can only be {what} by whoever sets that: "
            "NIMBUS_SIGNING_KEY_NEXT first, restart every control plane, and then swap them (docs/keys.md)"
        )


async def _tell(services: Services) -> None:
    await services.keys.refresh()
    await services.bell.ring(KEYS)


# --- on schedule -------------------------------------------------------------------------------------------------


def find_due(ring: KeyRing, terms: KeyTerms) -> list[Purpose]:
    """Pure: the families whose key has signed for so long that the next one must be published."""
    if not terms.rotation_interval_s:
        return []
    due_s = ring.now_s - terms.rotation_interval_s + terms.publish_lead_s
    return [
        purpose
        for purpose in Purpose
        if (current := ring.find_current(purpose)) is not None
        if current.signs_from_s <= due_s and ring.find_next(purpose) is None
    ]


def needs_tidying(ring: KeyRing) -> bool:
    """Pure: whether a private half is kept that signs no more, or a key whose time is over."""
    roles = [(ring.role(key), key) for key in ring.keys if not key.retired]
    over = {Role.DROPPED, Role.REVOKED}
    return any(role in over or (role is Role.PREVIOUS and key.signing is not None) for role, key in roles)


async def keep_keys(services: Services) -> None:
    """One look: the ring read anew, the next keys published where they are due, what is over put away."""
    chain = services.keys
    await chain.refresh()
    if chain.given:
        return
    ring = chain.current
    services.metrics.keys.note(ring)
    due = find_due(ring, chain.terms)
    if due:
        await rotate_keys(services, due)
    if needs_tidying(ring):
        await services.database.run(_tidy)
        await chain.refresh()


async def _tidy(transaction: Transaction) -> None:
    ring = await _lock_ring(transaction)
    for key in ring.keys:
        if key.signing is not None and ring.role(key) in {Role.PREVIOUS, Role.DROPPED}:
            await transaction.execute(_SQL["keep_public_half"], key.verify.kid, render_public_key(key.verify))
    await transaction.execute(_SQL["retire_keys"])


async def sweep_keys(services: Services) -> None:
    """Keep the keys at every ring of the bell and every refresh interval, until cancelled.

    Every process does, since every process signs; the database's lock makes each change happen once.
    """
    with services.bell.listen(KEYS) as ear:
        while True:
            try:
                await keep_keys(services)
            except Unavailable as error:  # the keys that are known stay
                log.warning("keys.not_read", reason=str(error))
            with trio.move_on_after(services.keys.terms.refresh_s):
                await ear.wait()
