"""What README and docs/ show: pages, code blocks, commands with their output. For the tests that hold them to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BARS = re.compile("[▏▎▍▌▋▊▉█]+")


@dataclass(frozen=True)
class Shown:
    """A command line and what the page says that it prints."""

    line: str
    output: tuple[str, ...]


def find_blocks(text: str) -> Iterator[str]:
    """The indented code blocks of a page."""
    unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (match[0] for match in re.finditer(r"(?:^ {4}\S.*\n)+", unfenced, flags=re.MULTILINE))


def find_fenced(kind: str) -> str:
    """README's one block of that kind."""
    (block,) = re.findall(rf"^```{kind}\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    return str(block)


def find_console_commands() -> list[Shown]:
    """README's root shell: commands and their output."""
    parts = re.split(r"^# ", find_fenced("console"), flags=re.MULTILINE)[1:]
    split = [part.splitlines() for part in parts]
    return [Shown(lines[0], tuple(lines[1:])) for lines in split]


def normalise(line: str) -> str:
    """A line without what differs from run to run: numbers, a runner's deployment, bars, width of columns."""
    anywhere = re.sub(r"\bnimbus-[0-9a-f]{4}-(?=\d)", "nimbus-N-", line)
    return " ".join(_BARS.sub("", re.sub(r"\d+(?:\.\d+)?", "N", anywhere)).split())
