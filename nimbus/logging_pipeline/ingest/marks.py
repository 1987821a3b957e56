"""Which row numbers of a machine are stored: the unbroken beginning and the islands behind it. Pure.

This is what makes storing exactly-once: a number that is in here is not stored again. Called by `writer`,
which rebuilds it from the table when in doubt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

MAX_ISLANDS = 256  # gaps that a machine may have open; ours sends in order and has none


class SeqSet:
    """A set of whole numbers kept as disjoint, sorted, inclusive ranges."""

    def __init__(self, islands: Iterable[tuple[int, int]] = ()) -> None:
        self._lows: list[int] = []
        self._highs: list[int] = []
        for low, high in sorted(islands):
            if self._highs and low <= self._highs[-1] + 1:
                self._highs[-1] = max(self._highs[-1], high)
            else:
                self._lows.append(low)
                self._highs.append(high)

    def __contains__(self, seq: int) -> bool:
        index = bisect_right(self._lows, seq) - 1
        return index >= 0 and seq <= self._highs[index]

    @property
    def islands(self) -> list[tuple[int, int]]:
        return list(zip(self._lows, self._highs, strict=True))

    @property
    def last(self) -> int:
        """The highest number; -1 while there is none."""
        return self._highs[-1] if self._highs else -1

    @property
    def acked(self) -> int:
        """The last number of the unbroken beginning; -1 while number 0 is missing."""
        return self._highs[0] if self._lows and self._lows[0] == 0 else -1

    def would_fit(self, seq: int) -> bool:
        """False where adding `seq` would open one gap too many."""
        if len(self._lows) < MAX_ISLANDS or seq in self:
            return True
        return (seq > 0 and seq - 1 in self) or seq + 1 in self

    def is_free(self, low: int, high: int) -> bool:
        """True where no number of this range is in here."""
        index = bisect_right(self._lows, high) - 1
        return index < 0 or self._highs[index] < low

    def add(self, seq: int) -> None:
        """Add one number; a number that is there already changes nothing."""
        if seq not in self:
            self.add_range(seq, seq)

    def add_range(self, low: int, high: int) -> None:
        """Add a range that is free."""
        index = bisect_right(self._lows, low)
        joins_left = index > 0 and self._highs[index - 1] == low - 1
        joins_right = index < len(self._lows) and self._lows[index] == high + 1
        if joins_left and joins_right:
            self._highs[index - 1] = self._highs[index]
            del self._lows[index], self._highs[index]
        elif joins_left:
            self._highs[index - 1] = high
        elif joins_right:
            self._lows[index] = low
        else:
            self._lows.insert(index, low)
            self._highs.insert(index, high)
