"""What a token reaches: `pull:org-7`, `push:org-7`. Exact segments, no wildcards, nothing implied.

`org-1` never matches `org-12`, and push does not include pull (storage facts 6.1).
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from nimbus.model.errors import Refused

_SCOPE = re.compile(r"(pull|push):org-([1-9][0-9]{0,18})")


class Action(enum.StrEnum):
    """What a scope allows."""

    PULL = "pull"
    PUSH = "push"


@dataclass(frozen=True)
class Scope:
    """One action on one org's storage."""

    action: Action
    org_id: int

    def __str__(self) -> str:
        return f"{self.action}:org-{self.org_id}"


def parse_scope(text: str) -> Scope:
    """Scope from its one spelling; Refused for any other, `read_write` among them."""
    match = _SCOPE.fullmatch(text)
    if match is None or not text.isascii():
        raise Refused(f"{text[:64]!r} is no scope: pull:org-N or push:org-N are")
    return Scope(Action(match[1]), int(match[2]))
