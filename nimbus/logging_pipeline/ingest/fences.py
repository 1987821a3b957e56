"""Which fence each machine has reached, and who may still write under an earlier one. Pure.

A machine that is granted anew prints under a higher fence. What it had printed before under the earlier one may come
late, from the spool of a host that was cut off, and is wanted: it tells why the first attempt was lost. What was
printed after the higher fence had begun comes from a host that lost its lease and goes on: that is refused (409),
which also ends its shipping. Called by `writer`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from nimbus.logging_pipeline.rows import Row, Source
from nimbus.model.errors import Fenced

SKEW_MS = 60_000  # that clocks of hosts may differ by, and a last line be late
MAX_MACHINES = 20_000


class Fences:
    """The highest fence of each machine and when its first row came."""

    def __init__(self) -> None:
        self._highest: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()

    def note(self, source: Source, since_ms: int) -> None:
        """This source's first row came then."""
        machine = (source.org_id, source.machine_id)
        fence, since = self._highest.get(machine, (-1, 0))
        if source.fence > fence:
            self._highest[machine] = (source.fence, since_ms)
        elif source.fence == fence:
            self._highest[machine] = (fence, min(since, since_ms))
        self._highest.move_to_end(machine)
        while len(self._highest) > MAX_MACHINES:
            self._highest.popitem(last=False)

    def check(self, source: Source, rows: Sequence[Row]) -> None:
        """Fenced where these rows were printed after a higher fence had begun."""
        fence, since_ms = self._highest.get((source.org_id, source.machine_id), (-1, 0))
        if fence > source.fence and rows and rows[0].ts_ms > since_ms + SKEW_MS:
            raise Fenced(f"machine {source.machine_id} prints under fence {fence}: fence {source.fence} is over")
