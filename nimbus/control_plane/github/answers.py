"""What an answer of GitHub's means for us: nothing, or a problem and whose turn it is.

Pure. `github/transport.py` judges each refusal here. GitHub tells most of them apart in words only, so the one
table below goes by status and words; the words' sources stand beside them. What it said is kept for the operator,
without anything that looks like a credential.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from nimbus.model.forge import Problem, ProblemKind

LIMITED_S = 60.0  # GitHub's own advice where a limit names no time
OUTAGE_S = 5.0
REFUSED_S = 60.0
LONGEST_LIMIT_S = 3700.0  # the primary limit's window is an hour; more than that is a wrong clock
MAX_SAID_CHARS = 200
_LIMITING = frozenset({403, 429})
_SECRET = re.compile(
    r"gh[a-z]_\w+|github_pat_\w+"  # GitHub's own tokens
    r"|eyJ[\w-]+\.[\w-]+\.[\w-]+"  # a JWT
    r"|[A-Za-z0-9+/_-]{40,}={0,2}"  # a JIT config, a registration token, a key
)


@dataclass(frozen=True)
class Answer:
    """One answer, read to its end. `headers` are in lower case; the body may be a secret."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def seconds(self, name: str) -> float | None:
        """The header as a number of seconds, where it is a plain one."""
        text = self.headers.get(name, "")
        return float(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None


@dataclass(frozen=True)
class _Rule:
    """Statuses and words that together mean one kind."""

    statuses: frozenset[int]
    words: re.Pattern[str]
    kind: ProblemKind


def _rule(statuses: set[int], words: str, kind: ProblemKind) -> _Rule:
    return _Rule(frozenset(statuses), re.compile(words, re.IGNORECASE), kind)


# The first that fits counts. Sources: owner/name#number is an issue on GitHub that quotes the answer.
_RULES = (
    # ossf/allstar#314, octokit/octokit.rb#1307: "This installation has been suspended"
    _rule({403}, r"(installation|account) (has been|was|is) suspended", ProblemKind.SUSPENDED),
    # SalesforceFoundation/NPSP#7247: "... has an IP allow list enabled, and your IP address is not permitted ..."
    _rule({403}, r"\bIP allow list\b|\bIP address\b.* not permitted", ProblemKind.IP_ALLOW_LIST),
    # runs-on/runs-on#417: "Repository level self-hosted runners are disabled on this repository"
    _rule(
        {403, 404, 409, 422},
        r"self-hosted runners? (is|are|has been|have been|were) (disabled|not (enabled|allowed))",
        ProblemKind.RUNNERS_DISABLED,
    ),
    # FreeRDP/FreeRDP#10645: "GitHub Actions is currently disabled for your account"
    _rule(
        {403, 404, 409, 422},
        r"\bactions (is|are|has been|have been) (currently )?(disabled|not enabled)",
        ProblemKind.ACTIONS_DISABLED,
    ),
    # ggml-org/llama.cpp#7893: "Invalid Argument - Runner group 1 has reached max limit of 10000 runners."
    _rule(
        {403, 409, 422},
        r"reached (its |the )?max\w*( \w+)? of [\d,]* ?runners|runner group\b.* is full",
        ProblemKind.GROUP_FULL,
    ),
    _rule(
        {403, 404, 422},
        r"runner group\b.*(not found|does not exist|not (visible|accessible))",
        ProblemKind.GROUP_MISSING,
    ),
    # every App meets it once: "Resource not accessible by integration"
    _rule(
        {403},
        r"not accessible by integration|must have admin rights|not granted to this installation",
        ProblemKind.NO_PERMISSION,
    ),
    _rule({422}, r"permissions? requested are not granted", ProblemKind.NO_PERMISSION),
)
# upptime/upptime#786, apache/devlake#1322; the older servers speak of abuse
_PRIMARY = re.compile(r"\bAPI rate limit exceeded", re.IGNORECASE)
_SECONDARY = re.compile(r"secondary rate limit|abuse detection", re.IGNORECASE)


def judge(answer: Answer, now_s: float, owner_retry_s: float, *, as_app: bool) -> Problem:
    """The problem behind a refusal; `as_app` where the App itself asked, not one of its installations."""
    said = read_said(answer)
    for rule in _RULES:
        if answer.status in rule.statuses and rule.words.search(said):
            return Problem(rule.kind, said, owner_retry_s)
    if answer.status in _LIMITING and (limit := _limit(answer, said, now_s)) is not None:
        return limit
    if answer.status >= 500:
        return Problem(ProblemKind.OUTAGE, said, min(answer.seconds("retry-after") or OUTAGE_S, LONGEST_LIMIT_S))
    if answer.status == 401:
        # an installation's token that was fetched just now and is not known yet passes by itself
        return Problem(ProblemKind.APP_KEY, said, owner_retry_s) if as_app else outage(said)
    if answer.status == 404:
        return Problem(ProblemKind.NOT_INSTALLED, said, owner_retry_s)
    return Problem(ProblemKind.REFUSED, said, REFUSED_S)


def outage(said: str, retry_after_s: float = OUTAGE_S) -> Problem:
    """GitHub is away, or might as well be."""
    return Problem(ProblemKind.OUTAGE, said, retry_after_s)


def _limit(answer: Answer, said: str, now_s: float) -> Problem | None:
    retry_after_s = answer.seconds("retry-after")
    reset_s = answer.seconds("x-ratelimit-reset")
    spent = answer.headers.get("x-ratelimit-remaining") == "0"
    if spent or (_PRIMARY.search(said) and not _SECONDARY.search(said)):
        until_reset_s = LIMITED_S if reset_s is None else max(1.0, reset_s - now_s)
        return Problem(ProblemKind.RATE_LIMIT, said, min(max(until_reset_s, retry_after_s or 0.0), LONGEST_LIMIT_S))
    if retry_after_s is not None or answer.status == 429 or _SECONDARY.search(said):
        wait_s = LIMITED_S if retry_after_s is None else max(1.0, retry_after_s)
        return Problem(ProblemKind.SECONDARY_LIMIT, said, min(wait_s, LONGEST_LIMIT_S))
    return None


def read_said(answer: Answer) -> str:
    """GitHub's own message and errors in one short line, without what looks like a credential."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    words: list[str] = []
    if isinstance(body, dict):
        words = [*_words(body.get("message")), *_words(body.get("errors"))]
    line = " ".join(" - ".join(words).split())
    return hide_secrets(line)[:MAX_SAID_CHARS] or f"status {answer.status}"


def hide_secrets(text: str) -> str:
    """The text without anything that looks like a credential."""
    return _SECRET.sub("[hidden]", text)


def _words(value: object) -> list[str]:
    """The texts in a message or in `errors`, which GitHub writes as text, list of texts or list of objects."""
    if isinstance(value, str):
        return [value.encode("utf-8", "replace").decode().replace("\0", "")] if value else []
    if isinstance(value, dict):
        return _words(value.get("message"))
    if isinstance(value, list):
        return [word for element in value[:3] for word in _words(element)]
    return []
