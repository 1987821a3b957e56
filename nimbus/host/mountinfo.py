"""/proc/self/mountinfo as values. Pure; called by host/{cgroup,inventory,blockdevice}.py."""

from __future__ import annotations

from dataclasses import dataclass

_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


@dataclass(frozen=True)
class Mount:
    """One line of the table."""

    point: str
    filesystem: str
    source: str = ""  # a device's path, for a filesystem that lies on one


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Every mount, in the kernel's order."""
    return tuple(_parse_line(line) for line in text.splitlines())


def _parse_line(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    filesystem, source = after.split(" ")[:2]
    return Mount(_unescape(before.split(" ")[4]), filesystem, _unescape(source))


def _unescape(word: str) -> str:
    for code, character in _ESCAPES:  # the backslash last: it begins the other three
        word = word.replace(code, character)
    return word
