"""The ids of tokens that were revoked, as the control plane tells them: asked every few seconds, kept in memory.

Until the first list is here nobody reads. While the control plane is away afterwards, what is known stays. Holds ids
and nothing else. Its task runs for as long as the service does; `access` asks at each request, streams at each step.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from nimbus.logging_pipeline.plane import Plane
from nimbus.model.errors import NimbusError, Refused, Unavailable
from nimbus.wire.fields import parse_object

PATH = "/api/internal/tokens/revoked"
MAX_IDS = 200_000
_FIRST_S = 0.5  # until there is a list at all
_NOT_MODIFIED, _NOT_FOUND = 304, 404
log = structlog.get_logger()


class RevokedTokens:
    """What this process knows of revoked tokens."""

    def __init__(self, plane: Plane, interval_s: float, changed: Callable[[], None]) -> None:
        self._plane = plane
        self._interval_s = interval_s
        self._changed = changed
        self._ids: frozenset[str] | None = None
        self._tag: str | None = None
        self._away = False

    @property
    def state(self) -> str:
        """As operators read it: whether the list is here, and whether the last look for it succeeded."""
        if self._ids is None:
            return "none"
        return "kept" if self._away else "fresh"

    def holds(self, token_id: str | None) -> bool:
        """Whether that token was revoked. One without an id cannot be."""
        return token_id is not None and self._ids is not None and token_id in self._ids

    def require_known(self) -> None:
        """Unavailable until the first list is here."""
        if self._ids is None:
            raise Unavailable("the list of revoked tokens could not be read yet: retry", retry_after_s=1.0)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self._look()
            except NimbusError as error:
                if not self._away:
                    log.warning("revoked.not_told", reason=str(error))
                self._away = True
            else:
                self._away = False
            await trio.sleep(self._interval_s if self._ids is not None else min(_FIRST_S, self._interval_s))

    async def _look(self) -> None:
        response = await self._plane.ask(PATH, {} if self._tag is None else {"If-None-Match": self._tag})
        if response.status_code == _NOT_FOUND:
            raise Refused("the control plane is older than this service: update it first")
        if response.status_code == _NOT_MODIFIED:
            return
        ids = frozenset(parse_object(response.content, "the list of revoked tokens").texts("jtis", MAX_IDS, 128))
        self._tag = response.headers.get("etag")
        before, self._ids = self._ids, ids
        if before is not None and ids - before:
            self._changed()
