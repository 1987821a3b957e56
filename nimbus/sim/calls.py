"""Calls to the fake GitHub's REST API, counted: so that Nimbus can be held to the fewest that do.

It decides nothing. `github_api.py` counts every answer, `control_accounts.py` shows the counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """One kind of request with one kind of answer. `route` is the pattern, as `/repos/<owner>/<repo>/actions/runs`."""

    installation_id: int | None  # whose token it carries or asks for; none: the App itself, or nobody we know
    method: str
    route: str
    status: int

    @property
    def is_token(self) -> bool:
        return self.route.endswith("/access_tokens")

    @property
    def is_write(self) -> bool:
        return self.method != "GET" and not self.is_token

    def is_mint(self, status: int | None = None) -> bool:
        return self.route.endswith("/generate-jitconfig") and self.status == (status or self.status)

    def is_deletion(self, status: int | None = None) -> bool:
        return self.method == "DELETE" and self.status == (status or self.status)


class Tally:
    """How often each was made since the start, or since the tally was cleared."""

    def __init__(self) -> None:
        self._counts: Counter[Call] = Counter()

    def count(self, call: Call) -> None:
        self._counts[call] += 1

    def clear(self) -> None:
        self._counts.clear()

    def calls(self) -> Iterator[tuple[Call, int]]:
        """Each with its count, in a stable order."""
        return iter(sorted(self._counts.items(), key=lambda item: _order(item[0])))

    def summary(self, installation_id: int) -> dict[str, int]:
        """One installation's calls by what they cost GitHub; `minted` and `deleted` are those that had an effect."""
        mine = [(call, times) for call, times in self._counts.items() if call.installation_id == installation_id]
        return {
            "writes": sum(times for call, times in mine if call.is_write),
            "mints": sum(times for call, times in mine if call.is_mint()),
            "minted": sum(times for call, times in mine if call.is_mint(201)),
            "deletes": sum(times for call, times in mine if call.is_deletion()),
            "deleted": sum(times for call, times in mine if call.is_deletion(204)),
            "registration_tokens": sum(times for call, times in mine if call.route.endswith("/registration-token")),
            "reads": sum(times for call, times in mine if call.method == "GET"),
            "not_modified": sum(times for call, times in mine if call.status == 304),
            "access_tokens": sum(times for call, times in mine if call.is_token),
        }


def _order(call: Call) -> tuple[int, str, str, int]:
    return (call.installation_id or 0, call.route, call.method, call.status)
