"""Which step of its job a row belongs to, and its level: what the job says by workflow commands in its output.

A step is what lies between the beginnings of two groups: a machine's rows carry the number of groups that it had begun
by then, 0 before the first. Groups do not nest, so the number of the row before is all that must be known to go on:
after a restart it comes from the table. That a job had stopped its commands (`::stop-commands::`) is forgotten then.

Called by the writer with the rows of one machine in their order, before they are published and stored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from nimbus.logging_pipeline.rows import Row, Source
from nimbus.wire.joboutput import GROUP, OUTPUT_STREAMS, CommandReader

Ask = Callable[[Mapping[Source, int]], Awaitable[Mapping[Source, int]]]
KEPT_SOURCES = 20_000
MAX_STEP = 2**16 - 1  # of the table's column; a job that begins more groups stays in its last


class _State:
    """How far one machine's output was read."""

    __slots__ = ("commands", "next_seq", "step")

    def __init__(self, step: int, next_seq: int) -> None:
        self.step = step
        self.next_seq = next_seq
        self.commands = CommandReader()


class Steps:
    """The steps of all machines that print, as many as may be remembered.

    `ask` tells for each machine the greatest step of its stored rows before the given number, for several at once.
    """

    def __init__(self, ask: Ask, kept: int = KEPT_SOURCES) -> None:
        self._ask = ask
        self._kept = kept
        self._states: OrderedDict[Source, _State] = OrderedDict()

    async def prepare(self, firsts: Mapping[Source, int]) -> None:
        """Learn what must be known before rows that begin with these numbers are marked; Unavailable like `ask`.

        A machine whose rows go on where the last ones ended costs no question. Another place means that this
        service was restarted, that an insert failed and rows come again, or that another replica took some.
        """
        unknown = {source: first for source, first in firsts.items() if not self._goes_on(source, first)}
        if not unknown:
            return
        found = await self._ask(unknown)
        for source, first in unknown.items():
            self._remember(source, _State(min(found.get(source, 0), MAX_STEP), first))

    def _goes_on(self, source: Source, first_seq: int) -> bool:
        state = self._states.get(source)
        return state.next_seq == first_seq if state is not None else first_seq == 0

    def mark(self, source: Source, rows: Sequence[Row]) -> None:
        """Give rows their step, and those that are commands their level."""
        if not rows:
            return
        state = self._states.get(source)
        if state is None:
            state = self._remember(source, _State(0, 0))
        self._states.move_to_end(source)
        step = state.step
        for row in rows:
            if row.message[:1] in ":# \t" and row.stream in OUTPUT_STREAMS:  # or it is none
                command = state.commands.read(row.message)
                if command is not None:
                    row.level = command.level
                    step = min(step + (command.name == GROUP), MAX_STEP)
            row.step = step
        state.step, state.next_seq = step, rows[-1].seq + 1

    def _remember(self, source: Source, state: _State) -> _State:
        self._states[source] = state
        self._states.move_to_end(source)
        while len(self._states) > self._kept:
            self._states.popitem(last=False)
        return state
