"""Keys for tests, with PostgreSQL's clock in the test's hand: time passes by moving every moment of every key back."""

from __future__ import annotations

from dataclasses import replace

from nimbus.control_plane.keys.ring import Keychain, KeyRing, KeyTerms, Purpose, RingKey, Role
from nimbus.control_plane.keys.rotation import keep_keys
from nimbus.control_plane.services import Services
from nimbus.runtime.postgres import Transaction

TERMS = KeyTerms(publish_lead_s=600, rotation_interval_s=30 * 86_400, agent_token_ttl_s=3600)
_PASS = """
UPDATE signing_keys SET signs_from = signs_from - make_interval(secs => $1),
       accepted_until = accepted_until - make_interval(secs => $1)
"""


def with_terms(services: Services, terms: KeyTerms) -> Services:
    """The same services, whose keys come and go on these terms."""
    chain = services.keys
    return replace(services, keys=Keychain(services.database, terms, chain.current, given=chain.given))


async def let_pass(services: Services, seconds: float, *, tidy: bool = True) -> None:
    """Time goes by, and then this process looks at its keys once."""

    async def age(transaction: Transaction) -> None:
        await transaction.execute(_PASS, seconds)

    await services.database.run(age)
    if tidy:
        await keep_keys(services)
    else:
        await services.keys.refresh()


def roles(ring: KeyRing, purpose: Purpose) -> dict[Role, str]:
    """The ids of a family's keys by what they are; of several previous ones the last."""
    return {ring.role(key): key.verify.kid for key in reversed(family(ring, purpose))}


def family(ring: KeyRing, purpose: Purpose) -> list[RingKey]:
    """A family's keys, the youngest first."""
    return sorted((key for key in ring.keys if key.purpose == purpose), key=lambda key: -key.signs_from_s)


def accepted(ring: KeyRing, purpose: Purpose) -> set[str]:
    return {key.kid for key in ring.accepted(purpose)}
