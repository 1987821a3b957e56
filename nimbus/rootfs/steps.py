"""A build step that runs only when its inputs have changed: remembered by the hash of what went in.

Never forgets what it made wrong: a memo counts only while all the blobs that it names are in the store.
Called by `build.py`, under the builder's lock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from nimbus.storage.content import Blob, ImageStore, has_blob


@dataclass(frozen=True)
class Outputs:
    """What a step made: blobs by role, and facts read on the way."""

    blobs: Mapping[str, Blob]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One step's name and inputs. `recipe` is raised by whoever changes what the step does with equal inputs."""

    name: str
    recipe: int
    inputs: Mapping[str, str]

    @property
    def key(self) -> str:
        text = json.dumps([self.name, self.recipe, dict(self.inputs)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def run_step(store: ImageStore, step: Step, make: Callable[[], Outputs], *, force: bool = False) -> Outputs:
    """The step's outputs: remembered, or made now."""
    memo = store.cache / "steps" / f"{step.name}-{step.key[:32]}.json"
    if not force:
        remembered = _parse_memo(memo.read_bytes()) if memo.is_file() else None
        if remembered is not None and all(has_blob(store, blob) for blob in remembered.blobs.values()):
            return remembered
    made = make()
    memo.parent.mkdir(parents=True, exist_ok=True)
    partial = memo.with_suffix(".partial")  # the builder's lock keeps a second writer away
    partial.write_text(json.dumps(asdict(made), sort_keys=True))
    partial.replace(memo)
    return made


def _parse_memo(raw: bytes) -> Outputs | None:
    """None for a memo that cannot be read: it is a cache, and the step runs again."""
    try:
        document = json.loads(raw)
        blobs = {role: Blob(**blob) for role, blob in document["blobs"].items()}
        return Outputs(blobs, dict(document["facts"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
