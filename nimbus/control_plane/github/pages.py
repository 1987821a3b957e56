"""Pages of GitHub's lists: what was read before (ETags), and where the next one is.

A page that has not changed is answered 304, which costs no quota. Kept pages are bounded in number and size; none
holds a secret. A next page is only ever on the host that answered: our token goes nowhere else.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from urllib.parse import parse_qs, urlsplit

from nimbus.control_plane.github.answers import Answer

MAX_KEPT = 2000
MAX_KEPT_BYTES = 32 * 1024 * 1024
_LINK = re.compile(r'<([^<>]{1,2000})>\s*;[^,<]*\brel="?next"?', re.IGNORECASE)

PageKey = tuple[int | None, str]


class KeptPages:
    """The last answer of each page that carries an ETag, the least used dropped first."""

    def __init__(self, max_pages: int = MAX_KEPT, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_pages = max_pages
        self._max_bytes = max_bytes
        self._pages: OrderedDict[PageKey, Answer] = OrderedDict()
        self._bytes = 0

    def find(self, key: PageKey) -> Answer | None:
        page = self._pages.get(key)
        if page is not None:
            self._pages.move_to_end(key)
        return page

    def keep(self, key: PageKey, answer: Answer) -> None:
        """Remember it for its ETag; an answer without one only drops what was kept."""
        old = self._pages.pop(key, None)
        if old is not None:
            self._bytes -= len(old.body)
        if answer.status != 200 or not answer.headers.get("etag") or len(answer.body) > self._max_bytes:
            return
        self._pages[key] = answer
        self._bytes += len(answer.body)
        while len(self._pages) > self._max_pages or self._bytes > self._max_bytes:
            _, dropped = self._pages.popitem(last=False)
            self._bytes -= len(dropped.body)


def next_link(answer: Answer) -> str | None:
    """The address of the next page, if there is one."""
    match = _LINK.search(answer.headers.get("link", ""))
    return match[1] if match is not None else None


def next_cursor(answer: Answer) -> str | None:
    """The cursor in the address of the next page."""
    link = next_link(answer)
    try:
        cursors = parse_qs(urlsplit(link).query).get("cursor", []) if link is not None else []
    except ValueError:
        return None
    return cursors[0] if cursors else None


def is_same_origin(url: str, root: str) -> bool:
    """Whether the address is on the same host, port and scheme as `root`."""
    try:
        ours, theirs = urlsplit(root), urlsplit(url)
        same_port = _port(ours.scheme, ours.port) == _port(theirs.scheme, theirs.port)
    except ValueError:
        return False
    if theirs.username is not None or theirs.password is not None:
        return False
    return (ours.scheme, ours.hostname) == (theirs.scheme, theirs.hostname) and same_port


def _port(scheme: str, port: int | None) -> int | None:
    return port if port is not None else {"http": 80, "https": 443}.get(scheme)
