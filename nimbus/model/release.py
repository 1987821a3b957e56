"""Releases of Nimbus as values that can be compared: `0.2.0` is before `0.10.0`, `0.2.0rc1` before `0.2.0`.

Pure. Called by the control plane, which judges agents by theirs.
"""

from __future__ import annotations

import re

from nimbus.model.errors import Refused

PARTS = 4  # of a version's numbers; those that are left out are 0
_VERSION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,3})((?:a|b|rc|\.dev)[0-9]{1,9})?(?:\+[a-z0-9.]{1,64})?")

Release = tuple[int, ...]


def parse_release(text: str) -> Release:
    """What orders this version among others; Refused for text that is none."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise Refused(f"{text[:64]!r} is no version: write it like 0.2.0")
    numbers = [int(part) for part in match[1].split(".")]
    is_final = match[2] is None
    return (*numbers, *[0] * (PARTS - len(numbers)), int(is_final))


def is_before(version: str, other: str) -> bool | None:
    """Whether a version is older than another; None where one of them is no version."""
    try:
        return parse_release(version) < parse_release(other)
    except Refused:
        return None
