"""A stream's body without HTTP: a test takes its events one by one, as slowly as it likes."""

from __future__ import annotations

import json
import time
from dataclasses import replace

from nimbus.logging_pipeline.live.follow import Follow, FollowRequest
from nimbus.logging_pipeline.rows import Place, ReadScope
from nimbus.logging_pipeline.tickets import Reader
from tests.unit.logging_pipeline.rig import Rig


def open_body(rig: Rig, places: tuple[Place, ...] = (), machine: int = 7, **terms: float) -> Follow:
    """Somebody who follows a machine of org 1; `terms` are those of the stream that matter here."""
    tails = replace(rig.services.tails, terms=replace(rig.services.tails.terms, **terms))  # type: ignore[arg-type]
    reader = Reader("tester", 1, int(time.time()) + 60)
    seat = rig.services.hub.take_seat(1)
    return Follow(tails, FollowRequest(ReadScope(1, (machine,)), places, reader, seat, None))


async def read_until(body: Follow, mark: bytes) -> bytes:
    text = b""
    while mark not in text:
        text += await body.__anext__()
    return text


def seqs_of(text: bytes) -> list[int]:
    """The numbers of the rows that were told, in the order in which they were."""
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith(b"data: ")]
    return [event["seq"] for event in told if "seq" in event]
