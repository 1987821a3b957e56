"""/proc/self/mountinfo as values. Pure; called by host/cgroup.py and host/inventory.py."""

from __future__ import annotations

from dataclasses import dataclass

_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


@dataclass(frozen=True)
class Mount:
    """One line of the table."""

    point: str
    filesystem: str


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Every mount, in the kernel's order."""
    return tuple(_parse_line(line) for line in text.splitlines())


def _parse_line(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    point = before.split(" ")[4]
    for code, character in _ESCAPES:  # the backslash last: it begins the other three
        point = point.replace(code, character)
    return Mount(point, after.split(" ")[0])
