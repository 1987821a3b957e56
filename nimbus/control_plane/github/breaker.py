"""The circuit breaker before GitHub's API: while GitHub is down, callers are told so at once.

Five failures in a row open it (5xx, no connection, no answer in time); it stays open for a second, then twice as
long each time up to a minute, and lets one probe through in between. An answer of any other kind closes it: a
refusal is no outage. `github/transport.py` holds one for its host. Elapsed seconds are passed in.
"""

from __future__ import annotations

import enum
import random

from nimbus.control_plane.github.answers import outage
from nimbus.model.forge import ForgeTrouble

FAILURES = 5
FIRST_S, LONGEST_S = 1.0, 60.0


class Passage(enum.Enum):
    """How a call goes through."""

    PLAIN = "plain"
    PROBE = "probe"  # the only one while the breaker is half open


class Breaker:
    """One host's breaker."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._failures = 0
        self._openings = 0
        self._open_until_s: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._open_until_s is not None

    @property
    def in_doubt(self) -> bool:
        """The last answer that we waited for was none."""
        return self._failures > 0

    def enter(self, elapsed_s: float) -> Passage:
        """Permission for one call; every one must be settled. ForgeTrouble while it is open."""
        if self._open_until_s is None:
            return Passage.PLAIN
        if elapsed_s < self._open_until_s:
            raise ForgeTrouble(outage("GitHub failed several times in a row", self._open_until_s - elapsed_s))
        if self._probing:
            raise ForgeTrouble(outage("GitHub failed several times in a row and is being tried", FIRST_S))
        self._probing = True
        return Passage.PROBE

    def succeed(self) -> None:
        """GitHub answered, whatever it said."""
        self._failures = self._openings = 0
        self._open_until_s = None
        self._probing = False

    def fail(self, passage: Passage, elapsed_s: float) -> None:
        """GitHub is down, as far as this call could see."""
        self._failures += 1
        if passage is Passage.PROBE:
            self._probing = False
        elif self.is_open or self._failures < FAILURES:
            return  # one that was under way when it opened says nothing new
        longest_s = min(FIRST_S * 2.0 ** min(self._openings, 10), LONGEST_S)
        self._openings += 1
        self._open_until_s = elapsed_s + longest_s * self._chance.uniform(0.5, 1.0)

    def abandon(self, passage: Passage) -> None:
        """The call was cancelled: it says nothing, and another may probe."""
        if passage is Passage.PROBE:
            self._probing = False
