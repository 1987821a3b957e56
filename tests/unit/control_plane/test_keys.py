"""Keys that come and go: what signs, what is accepted, what is published, at each moment of a key's life."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import cast

import pytest
import trio

from nimbus.control_plane.keys.minting import MACHINE_TOKEN_TTL_S, mint_agent_token
from nimbus.control_plane.keys.ring import KEYS, Keychain, KeyRing, KeyTerms, Purpose, RingKey, Role
from nimbus.control_plane.keys.rotation import (
    OVERLAP_S,
    GivenKeys,
    find_due,
    keep_keys,
    open_keychain,
    revoke_key,
    rotate_keys,
    sweep_keys,
)
from nimbus.control_plane.services import Services
from nimbus.model.errors import Conflict, NotFound, Unauthorized, Unavailable
from nimbus.runtime.postgres import Database, Row, Transaction
from nimbus.wire.tokens import Audience, new_ed25519_key, render_private_pem, verify_token
from tests.unit.control_plane.keychains import TERMS, accepted, family, let_pass, roles, with_terms
from tests.unit.control_plane.plane import open_services

pytestmark = pytest.mark.services
AGENT, MACHINE = Purpose.AGENT, Purpose.MACHINE
MINUTE_S = 60.0


async def private_halves(services: Services) -> set[str]:
    rows = await services.database.fetch("SELECT kid FROM signing_keys WHERE private_pem IS NOT NULL")
    return {row["kid"] for row in rows}


# --- the first keys ----------------------------------------------------------------------------------------------


async def test_two_control_planes_that_start_at_once_make_one_key_of_each_family(
    database_dsn: str, redis_url: str
) -> None:
    chains: list[Keychain] = []

    async def start(services: Services) -> None:
        chains.append(await open_keychain(services.database, TERMS))

    async with open_services(database_dsn, redis_url) as services, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(start, services)

    signing = {tuple(chain.current.signing(purpose).kid for purpose in Purpose) for chain in chains}
    assert len(signing) == 1
    (kids,) = signing
    assert len(set(kids)) == 2


async def test_a_family_accepts_nothing_of_the_other(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as services:
        ring = services.keys.current
        assert accepted(ring, AGENT).isdisjoint(accepted(ring, MACHINE))
        assert {key.kid for key in ring.published()} == accepted(ring, AGENT) | accepted(ring, MACHINE)


async def test_the_key_of_an_earlier_nimbus_signs_on_and_goes_like_any_other(database_dsn: str, redis_url: str) -> None:
    old = new_ed25519_key()

    async def as_it_was(transaction: Transaction) -> None:
        await transaction.execute("DELETE FROM signing_keys")
        await transaction.execute(
            "INSERT INTO signing_keys (kid, private_pem) VALUES ($1, $2)", old.kid, render_private_pem(old)
        )

    async with open_services(database_dsn, redis_url) as opened:
        await opened.database.run(as_it_was)
        chain = await open_keychain(opened.database, TERMS)
        services = replace(opened, keys=chain)
        assert chain.current.signing(AGENT).kid == old.kid
        assert chain.current.signing(MACHINE).kid != old.kid
        await rotate_keys(services, [AGENT])
        await let_pass(services, 601)
        assert old.kid in accepted(chain.current, AGENT) - await private_halves(services)
        await let_pass(services, MACHINE_TOKEN_TTL_S)  # it signed the tokens of machines, too
        assert old.kid in {key.kid for key in chain.current.published()}
        await let_pass(services, OVERLAP_S)
        assert roles(chain.current, AGENT)[Role.DROPPED] == old.kid


# --- rotation ----------------------------------------------------------------------------------------------------


async def test_a_key_is_published_before_it_signs_and_accepted_after(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        services = with_terms(opened, TERMS)
        old = services.keys.current.signing(AGENT).kid
        (rotation,) = await rotate_keys(services, [AGENT])

        ring = services.keys.current
        assert (rotation.made, rotation.signs_in_s) == (True, 600.0)
        assert ring.signing(AGENT).kid == old
        assert accepted(ring, AGENT) == {old, rotation.kid}
        assert rotation.kid in {key.kid for key in ring.published()}

        await let_pass(services, 600 - MINUTE_S)
        assert services.keys.current.signing(AGENT).kid == old

        await let_pass(services, MINUTE_S)
        assert roles(services.keys.current, AGENT) == {Role.CURRENT: rotation.kid, Role.PREVIOUS: old}
        assert old not in await private_halves(services)

        life_s = 3600 + OVERLAP_S
        await let_pass(services, life_s - MINUTE_S)
        assert accepted(services.keys.current, AGENT) == {old, rotation.kid}

        await let_pass(services, MINUTE_S)
        ring = services.keys.current
        assert accepted(ring, AGENT) == {rotation.kid}
        assert old not in {key.kid for key in ring.published()}
        assert roles(ring, AGENT)[Role.DROPPED] == old


async def test_a_machines_key_is_accepted_for_a_machines_tokens_life(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        services = with_terms(opened, TERMS)
        old = services.keys.current.signing(MACHINE).kid
        await rotate_keys(services, [MACHINE])
        await let_pass(services, 600 + MACHINE_TOKEN_TTL_S)
        assert old in accepted(services.keys.current, MACHINE)
        await let_pass(services, OVERLAP_S)
        assert old not in accepted(services.keys.current, MACHINE)


async def test_a_process_that_does_not_look_changes_over_by_itself(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        clock = Clock(100.0)
        services = replace(opened, keys=Keychain(opened.database, TERMS, opened.keys.current, clock=clock))
        old = services.keys.current.signing(AGENT).kid
        (rotation,) = await rotate_keys(services, [AGENT])

        clock.now_s += 599
        assert services.keys.current.signing(AGENT).kid == old
        clock.now_s += 2
        assert services.keys.current.signing(AGENT).kid == rotation.kid
        clock.now_s += 3600 + OVERLAP_S
        assert accepted(services.keys.current, AGENT) == {rotation.kid}


@dataclass
class Clock:
    """A process' own clock."""

    now_s: float

    def __call__(self) -> float:
        return self.now_s


async def test_a_second_order_to_rotate_finds_the_key_of_the_first(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        services = with_terms(opened, TERMS)
        first = await rotate_keys(services, Purpose)
        second = await rotate_keys(services, Purpose)
        assert [each.kid for each in first] == [each.kid for each in second]
        assert [each.made for each in first + second] == [True, True, False, False]
        assert all(0 < each.signs_in_s <= 600 for each in second)


# --- on schedule -------------------------------------------------------------------------------------------------


async def test_keys_rotate_by_themselves_so_that_the_next_signs_when_the_interval_is_over(
    database_dsn: str, redis_url: str
) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        services = with_terms(opened, TERMS)
        before = {purpose: services.keys.current.signing(purpose).kid for purpose in Purpose}
        await let_pass(services, TERMS.rotation_interval_s - TERMS.publish_lead_s - MINUTE_S)
        assert all(services.keys.current.find_next(purpose) is None for purpose in Purpose)

        await let_pass(services, MINUTE_S)
        coming = {purpose: services.keys.current.find_next(purpose) for purpose in Purpose}
        assert all(key is not None for key in coming.values())
        await keep_keys(services)
        assert all(len(family(services.keys.current, purpose)) == 2 for purpose in Purpose)

        await let_pass(services, TERMS.publish_lead_s)
        for purpose in Purpose:
            assert services.keys.current.signing(purpose).kid != before[purpose]


def test_an_interval_of_zero_never_rotates() -> None:
    key = new_ed25519_key()
    ring = KeyRing(tuple(RingKey(purpose, key.verify_key(), key, 0.0) for purpose in Purpose), 1e9)
    assert find_due(ring, KeyTerms(rotation_interval_s=0)) == []
    assert find_due(ring, KeyTerms()) == list(Purpose)


async def test_several_processes_on_schedule_publish_one_key(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        replicas = [with_terms(opened, TERMS) for _ in range(6)]
        await let_pass(opened, TERMS.rotation_interval_s, tidy=False)
        async with trio.open_nursery() as nursery:
            for services in replicas:
                nursery.start_soon(keep_keys, services)
        await opened.keys.refresh()
        assert all(len(family(opened.keys.current, purpose)) == 2 for purpose in Purpose)


# --- an emergency ------------------------------------------------------------------------------------------------


async def test_a_revoked_key_is_refused_at_once_and_another_signs_at_once(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        services = with_terms(opened, TERMS)
        leaked = services.keys.current.signing(AGENT).kid
        token = mint_agent_token(services.keys.current, "host-1", 3600)

        revocation = await revoke_key(services, leaked)

        ring = services.keys.current
        assert (revocation.was, revocation.signs) == (Role.CURRENT, ring.signing(AGENT).kid)
        assert revocation.signs != leaked
        assert accepted(ring, AGENT) == {revocation.signs}
        assert leaked not in {key.kid for key in ring.published()} | await private_halves(services)
        with pytest.raises(Unauthorized):
            verify_token(token, ring.accepted(AGENT), audience=Audience.AGENT, now_s=time.time())


async def test_where_the_next_key_is_published_it_takes_a_revoked_ones_place(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        services = with_terms(opened, TERMS)
        leaked = services.keys.current.signing(AGENT).kid
        (rotation,) = await rotate_keys(services, [AGENT])
        assert (await revoke_key(services, leaked)).signs == rotation.kid
        assert services.keys.current.signing(AGENT).kid == rotation.kid
        assert accepted(services.keys.current, AGENT) == {rotation.kid}


async def test_without_its_next_key_the_current_one_goes_on(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        services = with_terms(opened, TERMS)
        current = services.keys.current.signing(AGENT).kid
        (rotation,) = await rotate_keys(services, [AGENT])
        assert (await revoke_key(services, rotation.kid)).was is Role.NEXT
        await let_pass(services, 86_400)
        assert accepted(services.keys.current, AGENT) == {current}
        assert services.keys.current.signing(AGENT).kid == current
        (another,) = await rotate_keys(services, [AGENT])
        assert another.made


async def test_a_previous_key_can_be_revoked_and_nothing_else_changes(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as opened:
        services = with_terms(opened, TERMS)
        previous = services.keys.current.signing(AGENT).kid
        (rotation,) = await rotate_keys(services, [AGENT])
        await let_pass(services, 601)
        for was in (Role.PREVIOUS, Role.REVOKED):
            revocation = await revoke_key(services, previous)
            assert (revocation.was, revocation.signs) == (was, rotation.kid)
        assert accepted(services.keys.current, AGENT) == {rotation.kid}
        await keep_keys(services)
        assert roles(services.keys.current, AGENT)[Role.REVOKED] == previous


async def test_a_key_that_nobody_knows_cannot_be_revoked(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url) as services:
        with pytest.raises(NotFound):
            await revoke_key(services, "nobodys")


# --- several processes -------------------------------------------------------------------------------------------


async def test_another_process_hears_of_a_revocation_by_the_bell(database_dsn: str, redis_url: str) -> None:
    async with (
        open_services(database_dsn, redis_url, prefix="test:keys:") as here,
        open_services(database_dsn, redis_url, prefix="test:keys:") as there,
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(60):
            await there.bell.wait_connected()
            await here.bell.wait_connected()
            nursery.start_soon(sweep_keys, there)
            leaked = here.keys.current.signing(AGENT).kid
            with there.bell.listen(KEYS) as ear:
                await revoke_key(here, leaked)
                while leaked in accepted(there.keys.current, AGENT):
                    with trio.move_on_after(0.05):
                        await ear.wait()
        nursery.cancel_scope.cancel()


async def test_a_process_that_heard_nothing_finds_an_unknown_key_by_one_look_for_all_who_ask(
    database_dsn: str, redis_url: str
) -> None:
    async with open_services(database_dsn, redis_url) as here, open_services(database_dsn, redis_url) as there:
        fresh = (await revoke_key(here, here.keys.current.signing(AGENT).kid)).signs
        assert fresh not in accepted(there.keys.current, AGENT)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(there.keys.look_for_unknown)
        assert fresh in accepted(there.keys.current, AGENT)
        assert there.keys.looks == 1


class Away:
    """A database that does not answer."""

    async def fetch(self, *_: object) -> list[Row]:
        await trio.lowlevel.checkpoint()
        raise Unavailable("the database is away")


async def test_while_the_database_is_away_the_keys_that_are_known_stay() -> None:
    key = new_ed25519_key()
    ring = KeyRing((RingKey(AGENT, key.verify_key(), key, 0.0),), 100.0)
    chain = Keychain(cast("Database", Away()), TERMS, ring)
    for look in (chain.refresh, chain.look_for_unknown):
        with pytest.raises(Unavailable):
            await look()
        assert chain.current.signing(AGENT).kid == key.kid
        assert accepted(chain.current, AGENT) == {key.kid}


# --- keys that are given -----------------------------------------------------------------------------------------


async def test_given_keys_sign_for_both_families_and_only_their_owner_changes_them(
    database_dsn: str, redis_url: str
) -> None:
    current, coming, gone = (new_ed25519_key() for _ in range(3))
    given = GivenKeys(*(render_private_pem(key) for key in (current, coming, gone)))
    async with open_services(database_dsn, redis_url) as opened:
        services = replace(opened, keys=await open_keychain(opened.database, TERMS, given))
        await keep_keys(services)
        ring = services.keys.current
        for purpose in Purpose:
            assert ring.signing(purpose).kid == current.kid
            assert accepted(ring, purpose) == {current.kid, coming.kid, gone.kid}
            assert roles(ring, purpose) == {
                Role.CURRENT: current.kid, Role.NEXT: coming.kid, Role.PREVIOUS: gone.kid
            }  # fmt: skip
        assert len(ring.published()) == 3
        with pytest.raises(Conflict, match="NIMBUS_SIGNING_KEY_NEXT"):
            await rotate_keys(services, Purpose)
        with pytest.raises(Conflict, match="NIMBUS_SIGNING_KEY"):
            await revoke_key(services, current.kid)


# --- any history -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_in_any_history_a_good_token_is_accepted_until_it_ends_and_a_revoked_keys_never(
    database_dsn: str, redis_url: str, seed: int
) -> None:
    dice = random.Random(seed)
    passed_s = 0.0
    minted: list[tuple[Purpose, str, float]] = []  # family, key, when
    revoked: set[str] = set()
    life = {AGENT: TERMS.agent_token_ttl_s + OVERLAP_S, MACHINE: MACHINE_TOKEN_TTL_S + OVERLAP_S}
    async with open_services(database_dsn, redis_url) as opened:
        services = with_terms(opened, replace(TERMS, rotation_interval_s=7200))
        for _ in range(40):
            act = dice.choice(["pass", "pass", "pass", "rotate", "revoke"])
            if act == "pass":
                seconds = dice.choice([30.0, 300.0, 599.0, 3000.0, 50_000.0])
                await let_pass(services, seconds, tidy=dice.random() < 0.7)
                passed_s += seconds
            elif act == "rotate":
                await rotate_keys(services, [dice.choice(list(Purpose))])
            elif dice.random() < 0.4:
                kid = dice.choice(services.keys.current.keys).verify.kid
                await revoke_key(services, kid)
                revoked.add(kid)
            ring = services.keys.current
            minted += [(purpose, ring.signing(purpose).kid, passed_s) for purpose in Purpose]
            published = {key.kid for key in ring.published()}
            for purpose in Purpose:
                assert ring.signing(purpose).kid in accepted(ring, purpose) & published - revoked
                good = {
                    kid
                    for family_of, kid, when_s in minted
                    if family_of is purpose and passed_s < when_s + life[purpose] - 1 and kid not in revoked
                }
                assert good <= accepted(ring, purpose) & published
                assert revoked.isdisjoint(accepted(ring, purpose))
            held = await private_halves(services)
            assert revoked.isdisjoint(held)
