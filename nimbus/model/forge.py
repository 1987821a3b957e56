"""What a forge (GitHub) refuses us, and who must act before it will not. Values and words only.

The control plane's client makes a `Problem` of an answer, the database keeps it for its installation (or one of its
repositories) until a call succeeds, and every job that waits because of it shows `explain`. The kinds are the
classes of failure that operators meet (facts 5.2, 5.6).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from nimbus.model.errors import Unavailable


class ProblemKind(enum.StrEnum):
    """Why GitHub does not do what we ask."""

    SUSPENDED = "suspended"
    NOT_INSTALLED = "not_installed"
    IP_ALLOW_LIST = "ip_allow_list"
    ACTIONS_DISABLED = "actions_disabled"
    RUNNERS_DISABLED = "runners_disabled"  # self-hosted runners, in this repository or organisation
    NO_PERMISSION = "no_permission"
    GROUP_MISSING = "group_missing"
    GROUP_FULL = "group_full"
    APP_KEY = "app_key"
    RATE_LIMIT = "rate_limit"
    SECONDARY_LIMIT = "secondary_limit"
    OUTAGE = "outage"
    REFUSED = "refused"  # none of the others: its own words are all we know


# Nobody needs to act on these: they pass.
PASSING = frozenset({ProblemKind.RATE_LIMIT, ProblemKind.SECONDARY_LIMIT, ProblemKind.OUTAGE})

_WORDS: dict[ProblemKind, str] = {
    ProblemKind.SUSPENDED: "the GitHub App's installation on {owner} is suspended: an owner of {owner} must unsuspend "
    "it (Settings, GitHub Apps)",
    ProblemKind.NOT_INSTALLED: "the GitHub App is not installed on {scope}: an owner of {owner} must install it, or "
    "add the repository to it",
    ProblemKind.IP_ALLOW_LIST: "{owner} lets only listed addresses in: an owner of {owner} must add this control "
    "plane's address to its IP allow list",
    ProblemKind.ACTIONS_DISABLED: "GitHub Actions is disabled for {scope}: an administrator of {scope} must enable it",
    ProblemKind.RUNNERS_DISABLED: "self-hosted runners are disabled for {scope}: an administrator of {owner} must "
    "allow them (Settings, Actions, Runners)",
    ProblemKind.NO_PERMISSION: "the GitHub App lacks a permission on {scope}: its administrator must grant it, and an "
    "owner of {owner} must accept it",
    ProblemKind.GROUP_MISSING: "the runner group does not exist, or is not open to {scope}: an owner of {owner} must "
    "open it, or the operator must name another",
    ProblemKind.GROUP_FULL: "the runner group of {owner} is full: an owner of {owner} must remove runners from it",
    ProblemKind.APP_KEY: "GitHub does not accept the App's key: the operator must check NIMBUS_GITHUB_APP_ID and "
    "NIMBUS_GITHUB_APP_PRIVATE_KEY",
    ProblemKind.RATE_LIMIT: "GitHub's hourly limit for {owner} is used up: nobody must act, it goes on by itself",
    ProblemKind.SECONDARY_LIMIT: "GitHub asks us to slow down for {owner}: nobody must act, it goes on by itself",
    ProblemKind.OUTAGE: "GitHub does not answer, or with an error of its own: nobody here must act, it goes on "
    "by itself",
    ProblemKind.REFUSED: "GitHub refuses it for {scope}: the operator must look at its answer",
}


@dataclass(frozen=True)
class Problem:
    """One refusal. `said` are GitHub's own words, one short line; they hold no secret of ours."""

    kind: ProblemKind
    said: str
    retry_after_s: float
    ours: bool = False  # GitHub refused nothing: we hold the call back, to keep its limits


class ForgeTrouble(Unavailable):
    """GitHub does not do it now. Carries the problem, for whoever keeps it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"GitHub ({problem.kind}): {problem.said}", problem.retry_after_s)
        self.problem = problem


def explain(kind: ProblemKind, owner: str, repo: str | None = None) -> str:
    """One sentence that names who must act. `repo` narrows it to one repository."""
    return _WORDS[kind].format(owner=owner, scope=owner if repo is None else f"{owner}/{repo}")
