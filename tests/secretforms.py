"""Finds known secrets in text: as they stand, in base64 wherever they begin in it, and as URLs write them; and what
has the form of a token of ours though nobody told of it. Pure: no I/O. Called by secretwatch.py.

Text is cut into words once; a word is looked at only where twelve of its characters begin some form of a secret, so
that the cost grows with the text and not with the number of secrets.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from nimbus.wire.tokens import ISSUER

GRAM = 12  # a secret, or what one of its forms shows of it, is no shorter: less would be found by chance
DISTINCT = 6  # characters that differ: "xxxxxxxxxxxxxxxx" is a test's stand-in, and would be found anywhere
_WORD = re.compile(rf"[A-Za-z0-9+/=_.%~-]{{{GRAM},}}")
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{5,}\.(eyJ[A-Za-z0-9_-]+)\.[A-Za-z0-9_-]{43,}")
_FORMS = {
    "a cache token": re.compile(r"\bv1\.[A-Za-z0-9_-]{16}\.eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}"),
    "a token of GitHub's": re.compile(r"\bgh[opsur]_[A-Za-z0-9]{36,}"),
    "a runner's configuration": re.compile(r"\beyIucnVubmVy[A-Za-z0-9+/=]{40,}"),  # its JSON begins with ".runner"
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:\\n|\\r|\s)*[A-Za-z0-9+/]{40,}"),
}


@dataclass(frozen=True)
class Hit:
    """Where a secret stands in a text, and which; never the secret itself."""

    line: int
    what: str


@dataclass
class Forms:
    """The secrets known so far, ready to be looked for."""

    _grams: dict[str, dict[str, str]] = field(default_factory=dict)  # first characters -> whole form -> what it is
    _plain: dict[str, str] = field(default_factory=dict)  # secrets that are no single word: searched one by one
    _known: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, what: str, secret: str) -> None:
        """Look for this from now on. Too short or too plain to be told from chance: left out."""
        for part in _split(secret):
            if part in self._known or len(part) < GRAM or len(set(part)) < DISTINCT:
                continue
            self._known.add(part)
            if not _WORD.fullmatch(part):
                self._plain[part] = what
            for form, how in _write(part):
                if len(form) >= GRAM:
                    self._grams.setdefault(form[:GRAM], {}).setdefault(form, f"{what}{how}")

    def find(self, text: str) -> Iterator[Hit]:
        """Every place of a secret in the text."""
        for word in _WORD.finditer(text):
            for what in self._find_in(word[0]):
                yield Hit(_line(text, word.start()), what)
        for plain, what in self._plain.items():
            if plain in text:
                yield Hit(_line(text, text.index(plain)), what)
        for match in _JWT.finditer(text):
            if _is_ours(match[1]):
                yield Hit(_line(text, match.start()), "a signed token of Nimbus'")
        for what, pattern in _FORMS.items():
            for match in pattern.finditer(text):
                yield Hit(_line(text, match.start()), what)

    def _find_in(self, word: str) -> Iterator[str]:
        for start in range(len(word) - GRAM + 1):
            forms = self._grams.get(word[start : start + GRAM])
            if forms is not None:
                yield from (what for form, what in forms.items() if word.startswith(form, start))


def _split(secret: str) -> list[str]:
    """The parts that each give it away: a token's signature, the end of a private key, else all of it.

    The first lines of an RSA key are the same in its public half.
    """
    if "PRIVATE KEY-----" in secret:
        lines = [line for line in secret.replace("\\n", "\n").splitlines() if line and not line.startswith("-----")]
        return lines[len(lines) // 2 :]
    token = re.fullmatch(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+\.([A-Za-z0-9_-]{40,})", secret)
    return [token[1]] if token else [secret]


def _write(secret: str) -> Iterator[tuple[str, str]]:
    if _WORD.fullmatch(secret):
        yield secret, ""
    if (quoted := quote(secret, safe="")) != secret:
        yield quoted, " (as in a URL)"
    raw = secret.encode()
    for before in range(3):  # what stands before it shifts all of it by as many bits
        whole = base64.b64encode(bytes(before) + raw).rstrip(b"=").decode()
        own = whole[(0, 2, 3)[before] : len(whole) - bool((before + len(raw)) % 3)]
        yield own, " (in base64)"
        yield own.replace("+", "-").replace("/", "_"), " (in base64 for URLs)"


def _is_ours(payload: str) -> bool:
    try:
        told = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, binascii.Error):
        return False
    return isinstance(told, dict) and told.get("iss") == ISSUER


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
