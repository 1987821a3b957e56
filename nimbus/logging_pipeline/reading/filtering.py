"""What a request wants to see of a scope: times, levels, streams, a step, a text. Read from the query, strictly.

Values only: they become typed parameters further down, never SQL. Called by the read routes.
"""

from __future__ import annotations

import re
from datetime import datetime

from quart import request

from nimbus.logging_pipeline.rows import STREAMS
from nimbus.logging_pipeline.store.filters import Match, Phrase, RowFilter
from nimbus.model.errors import Refused

LEVELS = frozenset({"error", "warning", "notice", "debug", "info"})
MAX_PHRASE_CHARS = 256
MAX_WORDS = 16
MIN_WIDE_BYTES = 4  # of a substring that is looked for in a whole org or repo: shorter ones are in nearly every line
_MS = re.compile(r"[0-9]{1,15}")
_MAX_STEP = 65_535
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def read_filter() -> RowFilter:
    """What the query asks for; Refused where it is none of what the documents name."""
    args = request.args
    since, until = read_moment("since"), read_moment("until")
    if since is not None and until is not None and since >= until:
        raise Refused("since must be before until")
    return RowFilter(
        since_ms=since,
        until_ms=until,
        levels=_read_words("level", LEVELS),
        streams=_read_words("stream", STREAMS),
        step=_read_step(args.get("step")),
        phrase=read_phrase(),
    )


def read_moment(name: str) -> int | None:
    """A time as milliseconds since 1970."""
    text = request.args.get(name)
    if text is None:
        return None
    if text.isascii() and _MS.fullmatch(text):
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        pass
    raise Refused(f"{name} must be a time with its zone, as 2026-11-22T10:00:00Z, or milliseconds since 1970")


def read_phrase() -> Phrase | None:
    """The text that is looked for."""
    text = request.args.get("q")
    word = request.args.get("match", Match.TOKEN.value)
    if word not in set(Match):
        raise Refused("match must be token or substring")
    if text is None:
        return None
    if not text or len(text) > MAX_PHRASE_CHARS or _CONTROLS.search(text):
        raise Refused(f"q must be a text of 1 to {MAX_PHRASE_CHARS} characters on one line")
    phrase = Phrase(text, Match(word))
    if phrase.match is Match.TOKEN and not 1 <= len(phrase.words) <= MAX_WORDS:
        raise Refused(f"q must hold 1 to {MAX_WORDS} words: add match=substring to look for a text as it stands")
    return phrase


def require_wide_enough(phrase: Phrase | None) -> None:
    """Refused for a substring that is too short to be looked for beyond one job."""
    if phrase and phrase.match is Match.SUBSTRING and len(phrase.text.encode()) < MIN_WIDE_BYTES:
        raise Refused(
            f"a substring of fewer than {MIN_WIDE_BYTES} bytes is looked for in one job only: "
            "lengthen it, name a job, or look for a whole word by match=token"
        )


def _read_words(name: str, known: frozenset[str]) -> tuple[str, ...]:
    text = request.args.get(name)
    if text is None:
        return ()
    words = tuple(dict.fromkeys(text.split(",", len(known))))
    if not known.issuperset(words):
        raise Refused(f"{name} must be one of {', '.join(sorted(known))}, or several of them with commas between")
    return words


def _read_step(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= _MAX_STEP):
        raise Refused(f"step must be a whole number up to {_MAX_STEP}")
    return int(text)
