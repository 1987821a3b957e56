"""Which of the engine's sessions runs a statement: one writes, a few read, all at the same time.

The library lets go of the interpreter's lock while it works, and each of its sessions runs one statement at a time; so
a long search holds up neither inserts nor pages. It never looks into a statement beyond its kind. Called by `http`.
"""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue

import trio

from nimbus.logging_pipeline.engine.session import EngineReply, EngineRequest, EngineSession
from nimbus.logging_pipeline.engine.statements import READ_KINDS

_READERS = 4  # as many as the pipeline's client has connections; each costs next to nothing while it rests


class EngineLanes:
    """All sessions on one folder."""

    def __init__(self, path: str) -> None:
        writer = EngineSession(path)
        readers = [EngineSession(path, reads_only=True) for _ in range(_READERS)]
        self.table_functions = writer.list_table_functions()
        self._sessions = [*readers, writer]
        self._reading, self._writing = _Lane(readers), _Lane([writer])

    async def run(self, request: EngineRequest) -> EngineReply:
        """The reply to one statement, once a session is free for it; EngineRefusal where it failed."""
        lane = self._reading if request.statement.kind in READ_KINDS else self._writing
        return await lane.run(request)

    def close(self) -> None:
        """Nothing runs any more: all of them go, or the library would crash at the end of the process."""
        for session in self._sessions:
            session.close()


class _Lane:
    """Sessions that are alike, and as many threads."""

    def __init__(self, sessions: Sequence[EngineSession]) -> None:
        self._threads = trio.CapacityLimiter(len(sessions))
        self._idle: SimpleQueue[EngineSession] = SimpleQueue()
        for session in sessions:
            self._idle.put(session)

    async def run(self, request: EngineRequest) -> EngineReply:
        return await trio.to_thread.run_sync(self._run, request, limiter=self._threads)

    def _run(self, request: EngineRequest) -> EngineReply:
        session = self._idle.get_nowait()  # there are as many as threads
        try:
            return session.run(request)
        finally:
            self._idle.put(session)
