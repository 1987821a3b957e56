"""What a storm strikes: a process of Nimbus that is killed, stays away for a while and returns. Called by storm.py."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from tests.acceptance.fleet import Room
from tests.acceptance.stack import Json
from tests.faults.reckoning import Outage

LINE_CHARS = 300
_SHORT_S, _MIDDLE_S = (0.1, 2.0), (3.0, 7.0)
_BEYOND_TTL_S = (2.0, 5.0)  # of the longest absence: what it held is run again elsewhere


def plan_absences(kills: int, ttl_s: float, rng: random.Random) -> list[float]:
    """How long each kill keeps its victim away: most briefly, a quarter longer, one in eight beyond a lease's life."""
    long = kills // 8
    middle = kills // 4
    waits = [ttl_s + rng.uniform(*_BEYOND_TTL_S) for _ in range(long)]
    waits += [rng.uniform(*_MIDDLE_S) for _ in range(middle)]
    waits += [rng.uniform(*_SHORT_S) for _ in range(kills - long - middle)]
    rng.shuffle(waits)
    return waits


@dataclass
class Victim:
    """One process by its name, and its life in the storm."""

    name: str
    room: Room
    absences: list[float]  # of the kills to come, the last first
    kills: int = 0
    ready: bool = True
    outages: list[Outage] = field(default_factory=list)
    died: list[str] = field(default_factory=list)  # when nobody had killed it
    _back_at: float = 0.0
    _gone_since_s: float = 0.0

    @property
    def is_up(self) -> bool:
        return self.room.popen is not None

    def kill(self, rng: random.Random) -> float:
        """SIGKILL; how long it will be away. One that is still starting is a victim like any other."""
        away_s = self.absences.pop() if self.absences else rng.uniform(*_SHORT_S)
        now_s = time.time()
        self.room.kill()
        self.kills += 1
        if self.ready:
            self._gone_since_s = now_s
        self.ready = False
        self._back_at = time.monotonic() + away_s
        return away_s

    def tend(self) -> None:
        """Start it when its time has come, and note when it is there again."""
        if self.room.popen is None:
            if time.monotonic() >= self._back_at:
                self.room.launch()
        elif self.room.popen.poll() is not None:
            self._note_death(self.room.popen.poll())
        elif not self.ready and self.room.answers():
            self.ready = True
            self.outages.append(Outage(self.name, self._gone_since_s, time.time()))

    def hurry(self) -> None:
        """Come back now."""
        self._back_at = 0.0

    def _note_death(self, status: int | None) -> None:
        tail = self.room.log.read_text(errors="replace")[-300:]
        self.died.append(f"{self.name} ended by itself with {status}: {tail}")
        if self.ready:
            self._gone_since_s = time.time()
        self.ready, self.room.popen = False, None

    def tell_errors(self) -> list[str]:
        """What it said of itself that no kill of others may bring about."""
        said = self.room.log.read_text(errors="replace").splitlines()
        return [
            f"{self.name}: {line[:LINE_CHARS]}" for line in said if "Traceback" in line or '"level": "error"' in line
        ]

    def events(self, name: str) -> list[Json]:
        return self.room.events(name)
