"""What a token reaches: `pull:org-7`, `push:org-7`, `pull:org-7/repo-12`. Exact segments, nothing implied, no wildcard.

`org-1` never matches `org-12`, push does not include pull, and nothing includes delete (storage facts 6.1). A scope
of an org covers its repositories; one of a repository covers that one alone. Called by wire/cachetokens.py.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from nimbus.model.errors import Refused

MAX_ID = 2**63 - 1  # a bigint, as every id of ours
_ID = "([1-9][0-9]{0,18})"  # one spelling of each number: no leading zero, no sign, no digit of another script
_SCOPE = re.compile(f"(pull|push):org-{_ID}(?:/repo-{_ID})?")


class Action(enum.StrEnum):
    """What a scope allows."""

    PULL = "pull"
    PUSH = "push"


@dataclass(frozen=True, order=True)
class Scope:
    """One action on one org's storage, or on that of one of its repositories."""

    action: Action
    org_id: int
    repo_id: int | None = None

    def __str__(self) -> str:
        narrower = "" if self.repo_id is None else f"/repo-{self.repo_id}"
        return f"{self.action}:org-{self.org_id}{narrower}"

    def covers(self, wanted: Scope) -> bool:
        """Whether whoever holds this one may do what is wanted."""
        same = (self.action, self.org_id) == (wanted.action, wanted.org_id)
        return same and self.repo_id in {None, wanted.repo_id}


def parse_scope(text: str) -> Scope:
    """Scope from its one spelling; Refused for any other, `read_write` among them."""
    match = _SCOPE.fullmatch(text)
    ids = [int(part) for part in match.groups()[1:] if part is not None] if match is not None else []
    if match is None or max(ids) > MAX_ID:
        raise Refused(f"{text[:64]!r} is no scope: pull:org-N, push:org-N and pull:org-N/repo-M are")
    return Scope(Action(match[1]), *ids)
