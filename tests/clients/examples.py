"""GitHub's own example payloads, as the npm package @octokit/webhooks-examples holds them. `make setup` installs it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "node_modules" / "@octokit" / "webhooks-examples"
FORGES = ("api.github.com", "ghes-35")


@dataclass(frozen=True)
class Example:
    """One payload. Its name says where it stands in the package."""

    name: str
    event: str
    body: dict[str, Any] = field(repr=False)


@functools.cache
def read_examples() -> tuple[Example, ...]:
    """All of them; a folder that is absent is an error, so that no run passes without them."""
    examples = []
    for forge in FORGES:
        file = FOLDER / forge / "index.json"
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there: make setup installs GitHub's example payloads")
        for kind in json.loads(file.read_text(encoding="utf-8")):
            for number, body in enumerate(kind["examples"]):
                name = f"{forge}/{kind['name']}.{body.get('action', 'none')}-{number}"
                examples.append(Example(name, kind["name"], body))
    return tuple(examples)
