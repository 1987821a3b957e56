"""What is wrong with the log store, told apart from what is wrong with us: a kind, and who must do what about it.

Goes by error codes and by the way a call failed, never by the server's words, which may hold addresses and credentials.
Called by `table` at each failed call; read by the health routes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio
from urllib3.exceptions import ConnectTimeoutError
from urllib3.exceptions import TimeoutError as StoreTimeout

_log = structlog.get_logger()
REMEMBERED_S = 30.0


class Trouble(enum.StrEnum):
    """Why the store does not do what it is asked to."""

    AWAY = "away"
    SLOW = "slow"
    STRANGER = "refuses_us"
    READONLY = "read_only"
    FULL = "full"
    BUSY = "busy"
    SCHEMA = "schema"
    BROKEN = "broken"


ACTIONS = {
    Trouble.AWAY: "it does not answer: start it, or correct NIMBUS_CLICKHOUSE_URL",
    Trouble.SLOW: "it does not answer within NIMBUS_CLICKHOUSE_TIMEOUT: look at its load",
    Trouble.STRANGER: "it refuses our user: correct NIMBUS_CLICKHOUSE_USERNAME and _PASSWORD, or grant it its tables",
    Trouble.READONLY: "it takes no writes: look at its disks, its replicas and the profile of our user",
    Trouble.FULL: "it has no room: free space on its disks, or lower NIMBUS_LOGGING_RETENTION_DAYS",
    Trouble.BUSY: "it has too much to do: give it time, memory or cores",
    Trouble.SCHEMA: "its tables are not as we need them: run `nimbus logs migrate`",
    Trouble.BROKEN: "it fails in a way that we do not know: its own log says why",
}

# ClickHouse's error codes (src/Common/ErrorCodes.cpp)
_CODES = {
    159: Trouble.SLOW,  # TIMEOUT_EXCEEDED
    209: Trouble.SLOW,  # SOCKET_TIMEOUT
    192: Trouble.STRANGER,  # UNKNOWN_USER
    193: Trouble.STRANGER,  # WRONG_PASSWORD
    194: Trouble.STRANGER,  # REQUIRED_PASSWORD
    497: Trouble.STRANGER,  # ACCESS_DENIED
    516: Trouble.STRANGER,  # AUTHENTICATION_FAILED
    164: Trouble.READONLY,  # READONLY
    242: Trouble.READONLY,  # TABLE_IS_READ_ONLY
    243: Trouble.FULL,  # NOT_ENOUGH_SPACE
    201: Trouble.BUSY,  # QUOTA_EXCEEDED
    202: Trouble.BUSY,  # TOO_MANY_SIMULTANEOUS_QUERIES
    241: Trouble.BUSY,  # MEMORY_LIMIT_EXCEEDED
    252: Trouble.BUSY,  # TOO_MANY_PARTS
    10: Trouble.SCHEMA,  # NOT_FOUND_COLUMN_IN_BLOCK
    16: Trouble.SCHEMA,  # NO_SUCH_COLUMN_IN_TABLE
    47: Trouble.SCHEMA,  # UNKNOWN_IDENTIFIER
    60: Trouble.SCHEMA,  # UNKNOWN_TABLE
    81: Trouble.SCHEMA,  # UNKNOWN_DATABASE
}


def diagnose(error: BaseException) -> Trouble:
    """The kind of a failed call. A failure below HTTP, or one in which no server spoke, is one of the way there."""
    code = getattr(error, "code", None)
    if isinstance(code, int) and code:
        return _CODES.get(code, Trouble.BROKEN)
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (StoreTimeout, TimeoutError)) and not isinstance(seen, ConnectTimeoutError):
            return Trouble.SLOW  # a connection that was refused is one of that kind to urllib3, too
        seen = seen.__cause__ or seen.__context__
    return Trouble.AWAY


@dataclass(frozen=True)
class Standing:
    """How the store stands now: no trouble, or which, and for how many seconds."""

    trouble: Trouble | None
    for_s: float


class StoreHealth:
    """What the calls of this process say of the store. Each change is told once in the log.

    A store may answer reads and take no rows, so the two are kept apart. That it takes none is forgotten after
    REMEMBERED_S without another try: whoever is sent no rows because it is not ready would never be ready again.
    """

    def __init__(self) -> None:
        self.on_trouble: Callable[[str], None] = lambda _: None
        self._told: dict[bool, tuple[Trouble, float, float]] = {}  # by whether it wrote: what, since when, last seen

    @property
    def standing(self) -> Standing:
        """The trouble with writing before that with reading."""
        now = trio.current_time()
        for wrote in (True, False):
            if wrote in self._told:
                trouble, since, seen = self._told[wrote]
                if now - seen <= REMEMBERED_S:
                    return Standing(trouble, now - since)
        return Standing(None, 0.0)

    def note_good(self, *, wrote: bool) -> None:
        """A call went through."""
        if wrote in self._told:
            trouble, since, _ = self._told.pop(wrote)
            _log.info("store.back", was=trouble, wrote=wrote, after_s=round(trio.current_time() - since, 1))

    def note(self, trouble: Trouble, *, wrote: bool) -> None:
        """A call failed."""
        self.on_trouble(trouble)
        now = trio.current_time()
        before = self._told.get(wrote)
        if before is None or before[0] is not trouble:
            _log.warning("store.trouble", trouble=trouble, wrote=wrote, do=ACTIONS[trouble])
        self._told[wrote] = (trouble, now if before is None else before[1], now)
