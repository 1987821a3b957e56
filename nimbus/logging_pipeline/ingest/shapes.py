"""The shapes of well-known secrets: where a line holds one, and whether its end is the beginning of one. Pure.

Precise rather than eager: a CI log is full of digests, ids and base64, and none of them may be hidden. Every pattern
is matched by RE2, whose time grows with the text alone, whatever the text is. Called by `masknet`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass

import re2

OPEN_MAX = 4096  # bytes of a line's end that are looked at again with the next one
PEM_LINES_MAX = 400  # of one key: the largest RSA keys in use have 200
_PEM_STRANGE_MAX = 8  # lines in a row that are none of a key's: it was cut off
_MEMORY = 64 * 2**20
_LOOK_AHEAD = 4096  # bytes of a secret that are needed to tell it; it may be longer
_LOOKS_MIN = 8  # beginnings of secrets that any line may have, and one more for each so many bytes
_LOOKS_BYTES = 64
Span = tuple[int, int]
Check = Callable[[bytes], bool]


def compile_pattern(pattern: bytes, memory: int = _MEMORY) -> re2._Regexp:
    """A pattern over bytes. The library's own memory of patterns is emptied: secrets may stand in one."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.max_mem = memory  # below what it needs, it would fall back to something a thousand times slower
    options.log_errors = False
    compiled = re2.compile(pattern, options)
    re2.purge()
    return compiled


@dataclass(frozen=True)
class Shape:
    """One kind of secret. `check` has the last word, and `behind` bytes of what `body` matches are none of it."""

    first: str  # the two characters with which its alarm may begin, in lower case
    alarm: bytes  # matches wherever the whole may begin; rare in ordinary output
    body: bytes
    lead: bytes = b""  # from the alarm's beginning to the secret's
    check: Check | None = None
    behind: int = 0


def _is_jwt(token: bytes) -> bool:
    head, payload, _ = token.split(b".", 2)
    return "alg" in _decode_object(head) and _decode_object(payload) is not _NOTHING


_NOTHING: dict[str, object] = {}


def _decode_object(part: bytes) -> dict[str, object]:
    try:
        value = json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        return _NOTHING
    return value if isinstance(value, dict) else _NOTHING


def _is_basic(word: bytes) -> bool:
    """Whether it is what HTTP calls Basic: base64 of `user:password`."""
    try:
        return b":" in base64.b64decode(word + b"=" * (-len(word) % 4), validate=True)
    except binascii.Error:
        return False


def _is_mixed(word: bytes) -> bool:
    """Letters and digits both: no word of any language."""
    return any(48 <= byte <= 57 for byte in word) and any(byte >= 65 for byte in word)


# a word begins here, though a colour, an escape of JSON's or one of an address's may end in a letter before it
_ESCAPE = rb"(?:\x1b\[[0-9;?]*[A-Za-z]|\\[nrtbf]|%[0-9A-Fa-f]{2})"
_START = rb"(?:\b|" + _ESCAPE + rb")"
_QUOTE = rb"""(?:\\?["'])?"""
_IS = _QUOTE + rb"\s*(?:=>|[:=])\s*" + _QUOTE
_AWS_NAME = rb"(?i:secret_?access_?key|aws_secret(?:_key)?|session_?token)"
_USER = rb"://[^\s/?#:@\"'<>]*:"
_B64 = rb"[A-Za-z0-9/+]"
SHAPES = (
    Shape("gh", _START + rb"gh[pousr]_", rb"gh[pousr]_[A-Za-z0-9_]{20,}"),
    Shape("gi", _START + rb"github_pat_", rb"github_pat_[A-Za-z0-9_]{20,}"),
    Shape("ak as", _START + rb"A(?:KI|SI)A[A-Z2-7]", rb"A(?:KI|SI)A[A-Z2-7]{16}\b"),
    Shape("se aw", _AWS_NAME, _B64 + rb"{40,}={0,2}", lead=_AWS_NAME + _IS, check=_is_mixed),
    Shape("si", _START + rb"sig=", rb"(?:[A-Za-z0-9/+]|%[0-9A-Fa-f]{2}){40,}={0,2}", lead=rb"sig="),
    Shape("ac sh", rb"(?:Account|SharedAccess)Key=", _B64 + rb"{40,}={0,2}", lead=rb"(?:Account|SharedAccess)Key="),
    Shape("xo xa", _START + rb"x(?:ox[a-z]|app)-", rb"x(?:ox[a-z]|app)-[A-Za-z0-9-]{10,}", check=_is_mixed),
    Shape(
        "ho",
        rb"hooks\.slack\.com/",
        rb"[A-Za-z0-9/_-]{20,}",
        lead=rb"hooks\.slack\.com/(?:services|workflows|triggers)/",
    ),
    Shape("gl", _START + rb"gl[a-z]{2,5}-", rb"gl(?:pat|rt|dt|cbt|ptt|ft|soat|agent|imt|oas)-[A-Za-z0-9_.-]{20,}"),
    Shape("np", _START + rb"npm_", rb"npm_[A-Za-z0-9]{36,}", check=_is_mixed),
    Shape("py", _START + rb"pypi-AgE", rb"pypi-AgE[A-Za-z0-9_-]{30,}"),
    Shape(
        "sk",
        _START + rb"sk-",
        rb"sk-(?:(?:ant|proj|svcacct|admin|or)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{32,})",
        check=_is_mixed,
    ),
    Shape("sk rk", _START + rb"[sr]k_(?:live|test)_", rb"[sr]k_(?:live|test)_[A-Za-z0-9]{10,}"),
    Shape("wh", _START + rb"whsec_", rb"whsec_[A-Za-z0-9/+]{20,}={0,2}"),
    Shape("ai", _START + rb"AIza", rb"AIza[A-Za-z0-9_-]{35}"),
    Shape("ya", _START + rb"ya29\.", rb"ya29\.[A-Za-z0-9_-]{20,}"),
    Shape("dc", _START + rb"dckr_", rb"dckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}"),
    Shape("hv", _START + rb"hv[sbr]\.", rb"hv[sbr]\.[A-Za-z0-9_-]{24,}"),
    Shape("ey", _START + rb"eyIucnVubmVy", rb"eyIucnVubmVy[A-Za-z0-9+/]{20,}={0,2}"),
    Shape("ey", _START + rb"eyJ", rb"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{16,}", check=_is_jwt),
    Shape("v1", _START + rb"v1\.[A-Za-z0-9_-]{16}\.", rb"v1\.[A-Za-z0-9_-]{16}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}"),
    Shape(
        "au",
        rb"(?i:authorization)",
        rb"[A-Za-z0-9._~+/-]{8,}={0,2}",
        lead=rb"(?i:authorization)" + _IS + rb"(?i:bearer|basic|token|negotiate)\s+",
    ),
    Shape("be", _START + rb"(?i:bearer)\s", rb"[A-Za-z0-9._~+/-]{20,}={0,2}", lead=rb"(?i:bearer)\s+", check=_is_mixed),
    Shape("ba", _START + rb"(?i:basic)\s", _B64 + rb"{8,}={0,2}", lead=rb"(?i:basic)\s+", check=_is_basic),
    # the password before a host's name
    Shape(":/", _USER + rb"[^\s/?#\"'<>]+@", rb"[^\s/?#\"'<>]{3,}@[A-Za-z0-9\[_]", lead=_USER, behind=2),
)
_PEM_BEGIN = rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PEM_END = rb"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"

ROW_ALARM = compile_pattern(b"|".join(dict.fromkeys([*(shape.alarm for shape in SHAPES), b"PRIVATE KEY"])))
ALARMS = compile_pattern(b"|".join(dict.fromkeys(shape.alarm for shape in SHAPES)))
_BEHIND_ESCAPE = compile_pattern(_ESCAPE)
_LEADS = [compile_pattern(shape.lead) if shape.lead else None for shape in SHAPES]
_SECRETS = [compile_pattern(shape.body) for shape in SHAPES]
_BY_FIRST = {
    first.encode(): [index for index, each in enumerate(SHAPES) if first in each.first.split()]
    for shape in SHAPES
    for first in shape.first.split()
}
_REST = compile_pattern(rb"[A-Za-z0-9._~+/=%-]*")
# of shapes that tell themselves: what follows an address or a word at a line's end is mostly another line
_BEGUN = compile_pattern(b"(?:" + b"|".join(shape.alarm for shape in SHAPES if not shape.lead) + rb")[^\s\"'<>]*\z")
_BEGIN = compile_pattern(_PEM_BEGIN)
_END = compile_pattern(_PEM_END)
_KEY_LINE = compile_pattern(
    rb"(?:^|[\s|>:])(?:[A-Za-z0-9+/]{16,}={0,3}|[A-Za-z0-9+/]{1,15}={1,3}|=[A-Za-z0-9+/]{4})\s*(?:\\n)?[\"',]*\s*$"
)
_KEY_RUN = compile_pattern(rb"[A-Za-z0-9+/]{16,}|=")
_ALL_BASE64 = compile_pattern(rb"\A[A-Za-z0-9+/]+\z")
_ALL_KEY = compile_pattern(rb"\A[A-Za-z0-9+/]{64}\z")
_ALL_HEX = compile_pattern(rb"\A(?:[0-9a-f]+|[0-9A-F]+)\z")


def find_shapes(text: bytes, alarms: re2._Regexp = ALARMS) -> list[Span]:
    """Where the secrets of known shape stand in one line.

    A line with more beginnings than any honest one has is hidden from there on, so that none is dear to look at.
    """
    spans: list[Span] = []
    at, left = 0, _LOOKS_MIN + len(text) // _LOOKS_BYTES
    while (alarm := alarms.search(text, at)) is not None:
        if left == 0:
            return [*spans, (alarm.start(), len(text))]
        left -= 1
        span = _find_secret(text, alarm.start())
        if span is not None:
            spans.append(span)
        at = alarm.start() + 1 if span is None else span[1]
    return spans


def _find_secret(text: bytes, at: int) -> Span | None:
    """The secret whose alarm stands at this place."""
    escape = _BEHIND_ESCAPE.match(text, at)
    at = at if escape is None else escape.end()
    end = min(len(text), at + _LOOK_AHEAD)
    for index in _BY_FIRST.get(text[at : at + 2].lower(), ()):
        lead, begin = _LEADS[index], at
        if lead is not None:
            led = lead.match(text, at, end)
            if led is None:
                continue
            begin = led.end()
        found = _SECRETS[index].match(text, begin, end)
        if found is None:
            continue
        shape, last = SHAPES[index], found.end() - SHAPES[index].behind
        if shape.check is None or shape.check(text[begin:last]):
            return begin, _REST.match(text, last).end() if found.end() == end < len(text) else last
    return None


def find_begun(text: bytes) -> int:
    """Where at the end of a line something begins that more bytes may make a secret; its length for nowhere."""
    match = _BEGUN.search(text, max(len(text) - OPEN_MAX, 0))
    return len(text) if match is None else int(match.start())


@dataclass(slots=True)
class PemBlock:
    """A private key's lines, one after the other: whether the next one is of the key, and when it is over."""

    left: int = 0  # lines that may follow yet; 0: not inside of one
    strange: int = 0

    def cover(self, text: bytes) -> list[Span]:
        """What to hide of this line; it may begin a key, end one, both, or be within one."""
        spans = []
        at = 0
        if self.left:
            end = _END.search(text)
            if end is not None:
                if _KEY_RUN.search(text, 0, end.start()) is not None:
                    spans.append((0, end.start()))
                at, self.left = end.end(), 0
            else:
                spans += self._cover_inside(text)
                at = len(text)
        while at < len(text) and (begin := _BEGIN.search(text, at)) is not None:
            end = _END.search(text, begin.end())
            at = len(text) if end is None else end.end()
            spans.append((begin.end(), at if end is None else end.start()))
            self.left, self.strange = (PEM_LINES_MAX, 0) if end is None else (0, 0)
        return [(begin, end) for begin, end in spans if begin < end]

    def _cover_inside(self, text: bytes) -> list[Span]:
        """A key's line is base64 to its end, whatever an indent or a time before it; another is left as it is."""
        self.left -= 1
        if _KEY_LINE.search(text) is not None or (self.strange == 0 and _is_last_line(text)):
            self.strange = 0
            return [(0, len(text))]
        self.strange += bool(text.strip())
        if self.strange >= _PEM_STRANGE_MAX:
            self.left = 0
        return []


def _is_last_line(text: bytes) -> bool:
    """Whether a line may be a key's last one, which may be short: base64 behind a mark or a time at most."""
    words = text.split()
    return 0 < len(words) <= 3 and len(words[-1]) % 4 == 0 and _ALL_BASE64.match(words[-1]) is not None


def looks_like_key(text: bytes) -> bool:
    """Whether a line can be from the middle of a private key, for whoever did not see its beginning."""
    line = text.strip()
    return _ALL_KEY.search(line) is not None and _ALL_HEX.search(line) is None
