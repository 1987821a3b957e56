"""The ring of keys: which one signs now, which are accepted yet, which are published already. Read anew, never changed.

A key has a family (`Purpose`), and its times are PostgreSQL's: a ring knows how that clock stands. Never writes to the
database (rotation.py does) and never shows a private key. Called by whoever mints or verifies.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import trio

from nimbus.model.errors import NotFound, Unavailable
from nimbus.runtime.postgres import Database, Row, load_queries
from nimbus.wire.tokens import SigningKey, VerifyKey, load_ed25519_key, parse_public_key

KEYS = "keys"  # the bell's channel: keys have changed
UNKNOWN_EVERY_S = 1.0  # between two looks for a key that is not known, whoever asks

_SQL = load_queries("nimbus.control_plane", "queries", "keys.sql")


class Purpose(enum.StrEnum):
    """What the keys of a family sign."""

    AGENT = "agent"
    MACHINE = "machine"


class Role(enum.StrEnum):
    """What a key is at a moment."""

    NEXT = "next"  # published and accepted, and does not sign yet
    CURRENT = "current"  # signs
    PREVIOUS = "previous"  # accepted for as long as what it signed may live
    DROPPED = "dropped"  # its time is over
    REVOKED = "revoked"  # an operator ended it


@dataclass(frozen=True)
class KeyTerms:
    """How keys come and go."""

    publish_lead_s: float = 600.0  # from a key's publication until it signs: every verifier has read it by then
    jwks_max_age_s: int = 300
    refresh_s: float = 30.0
    rotation_interval_s: float = 30 * 86_400.0  # 0: on command only
    agent_token_ttl_s: float = 3600.0


@dataclass(frozen=True)
class RingKey:
    """One key with its times, in seconds of PostgreSQL's clock. `signing` None: its private half is deleted."""

    purpose: Purpose
    verify: VerifyKey
    signing: SigningKey | None = field(repr=False)
    signs_from_s: float
    accepted_until_s: float | None = None
    revoked: bool = False
    retired: bool = False

    def is_accepted(self, now_s: float) -> bool:
        in_time = self.accepted_until_s is None or now_s < self.accepted_until_s
        return in_time and not self.revoked and not self.retired


@dataclass(frozen=True)
class KeyRing:
    """The keys as they stand at `now_s`."""

    keys: tuple[RingKey, ...]
    now_s: float

    def signing(self, purpose: str) -> SigningKey:
        """The key that signs for this purpose now."""
        current = self.find_current(purpose)
        if current is None or current.signing is None:
            raise Unavailable(f"there is no key to sign {purpose} tokens with yet: retry")
        return current.signing

    def find_current(self, purpose: str) -> RingKey | None:
        """The youngest that may sign; the first of those to come where PostgreSQL's clock was set back."""
        able = [key for key in self._live(purpose) if key.signing is not None]
        begun = [key for key in able if key.signs_from_s <= self.now_s]
        if begun:
            return max(begun, key=lambda key: key.signs_from_s)
        return min(able, key=lambda key: key.signs_from_s, default=None)

    def find_next(self, purpose: str) -> RingKey | None:
        """The key that will sign."""
        current = self.find_current(purpose)
        coming = [key for key in self._live(purpose) if key.signs_from_s > self.now_s and key is not current]
        return min(coming, key=lambda key: key.signs_from_s, default=None)

    def accepted(self, purpose: str) -> tuple[VerifyKey, ...]:
        """Whatever may have signed a token that is still good; the next key too: another process may be ahead."""
        return tuple(key.verify for key in self._live(purpose))

    def published(self) -> tuple[VerifyKey, ...]:
        """The key set that verifiers elsewhere read."""
        return tuple({key.verify.kid: key.verify for key in self.keys if key.is_accepted(self.now_s)}.values())

    def role(self, key: RingKey) -> Role:
        """What this key is now."""
        if key.revoked:
            return Role.REVOKED
        if not key.is_accepted(self.now_s):
            return Role.DROPPED
        if key is self.find_current(key.purpose):
            return Role.CURRENT
        return Role.NEXT if key.signs_from_s > self.now_s else Role.PREVIOUS

    def find(self, kid: str) -> RingKey:
        """The key of this id; NotFound where there is none."""
        for key in self.keys:
            if key.verify.kid == kid:
                return key
        raise NotFound(f"there is no signing key {kid}: nimbus admin keys list shows them")

    def _live(self, purpose: str) -> list[RingKey]:
        return [key for key in self.keys if key.purpose == purpose and key.is_accepted(self.now_s)]


@dataclass(frozen=True)
class _Read:
    ring: KeyRing
    at_s: float  # by our own clock


class Keychain:
    """The ring of this process, read anew from the database. Get one by `rotation.open_keychain`."""

    def __init__(
        self, database: Database, terms: KeyTerms, ring: KeyRing, *, given: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.terms = terms
        self.given = given  # by NIMBUS_SIGNING_KEY: the database is not asked
        self._database = database
        self._clock = clock
        self._read = _Read(ring, clock())
        self._reading = trio.Lock()
        self.looks = 0  # begun so far

    @property
    def current(self) -> KeyRing:
        """The ring as it stands now: what PostgreSQL's clock has begun or ended since the last look is so here, too."""
        return replace(self._read.ring, now_s=self._read.ring.now_s + self._clock() - self._read.at_s)

    async def refresh(self) -> None:
        """Read the ring. Unavailable where the database is away; then the keys that are known stay."""
        async with self._reading:
            await self._refresh()

    async def look_for_unknown(self) -> None:
        """A key was met that is not in the ring: look again, once for all who ask within a moment.

        Waits for that moment rather than refuse in it. Unavailable where the database is away: nobody knows better.
        """
        seen = self.looks
        await trio.sleep(max(self._read.at_s + UNKNOWN_EVERY_S - self._clock(), 0.0))
        async with self._reading:
            if self.looks == seen:  # else somebody has looked while we waited
                await self._refresh()

    async def _refresh(self) -> None:
        self.looks += 1
        if not self.given:
            rows = await self._database.fetch(_SQL["read_keys"])
            self._read = _Read(parse_ring(rows), self._clock())


def parse_ring(rows: Iterable[Row]) -> KeyRing:
    """The ring of the database's rows, which all carry the clock's time."""
    rows = list(rows)
    return KeyRing(tuple(map(_parse_key, rows)), max((row["now_s"] for row in rows), default=0.0))


def _parse_key(row: Row) -> RingKey:
    signing = None if row["private_pem"] is None else load_ed25519_key(row["private_pem"])
    return RingKey(
        purpose=Purpose(row["purpose"]),
        verify=parse_public_key(row["kid"], row["public_x"]) if signing is None else signing.verify_key(),
        signing=signing,
        signs_from_s=row["signs_from_s"],
        accepted_until_s=row["accepted_until_s"],
        revoked=row["revoked"],
        retired=row["retired"],
    )


def plan_given_ring(signing: SigningKey, coming: SigningKey | None, gone: SigningKey | None) -> KeyRing:
    """Pure: the ring of keys that the operator gives. One signs for every purpose, the others never."""
    keys = [RingKey(purpose, signing.verify_key(), signing, 0.0) for purpose in Purpose]
    for other, signs_from_s in ((coming, math.inf), (gone, 0.0)):
        if other is not None:
            keys += [RingKey(purpose, other.verify_key(), None, signs_from_s) for purpose in Purpose]
    return KeyRing(tuple(keys), 0.0)
