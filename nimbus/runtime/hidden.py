"""Parameters of an address that open something: taken out of it before the server or anybody else writes it down.

An access log is written from the very scope that the application gets, so that is where they are struck out. Called
by serving.py for applications that name such parameters; their routes read them by `find_hidden`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any, cast
from urllib.parse import unquote_plus

STRUCK = b"***"
_KEY = "nimbus.hidden"


def hide_parameters(scope: MutableMapping[str, Any], names: Collection[str]) -> None:
    """Strike these parameters' values out of the scope's query; `find_hidden` has them. Of several the first counts."""
    query = scope["query_string"]
    if not query:
        return
    found: dict[str, str] = {}
    parts = query.split(b"&")
    for index, part in enumerate(parts):
        raw_name, _, value = part.partition(b"=")
        name = unquote_plus(raw_name.decode("latin-1"))
        if name in names:
            found.setdefault(name, unquote_plus(value.decode("latin-1")))
            parts[index] = raw_name + b"=" + STRUCK
    if found:
        scope["query_string"] = b"&".join(parts)
        scope[_KEY] = found


def find_hidden(scope: Mapping[str, Any] | None) -> Mapping[str, str]:
    """What was struck out of this request's address, by name."""
    return cast("Mapping[str, str]", (scope or {}).get(_KEY, {}))
