"""A logging pipeline that tests can make slow, silent, broken or choosy."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
from quart import Response, request

from nimbus.runtime.serving import build_app, json_response, read_body, serve_app


@dataclass
class Pipeline:
    """A pipeline that keeps what it is sent and answers as told."""

    url: str = ""
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    posts: int = 0
    packed: int = 0  # of these
    pause_s: float = 0.0  # before each answer; infinity never answers

    def messages(self, stream: str = "stdout") -> list[str]:
        return [row["message"] for row in self.rows if row["stream"] == stream]


@asynccontextmanager
async def open_pipeline() -> AsyncIterator[Pipeline]:
    pipeline, stop = Pipeline(), trio.Event()
    app = build_app("pipeline", max_body_bytes=4 * 2**20)

    @app.post("/ingest")
    async def ingest() -> Response:
        sent = await read_body()
        packed = request.headers.get("Content-Encoding") == "gzip"
        body = json.loads(gzip.decompress(sent) if packed else sent)
        pipeline.packed += packed
        pipeline.posts += 1
        await trio.sleep(pipeline.pause_s)
        if pipeline.statuses:
            status, headers = pipeline.statuses.pop(0)
            return json_response({"error": "told", "message": "told so"}, status, headers)
        pipeline.rows += body["rows"]
        return json_response({"acked_seq": body["rows"][-1]["seq"]})

    async with trio.open_nursery() as nursery:
        serve = partial(serve_app, graceful_s=0.2)
        binds = await nursery.start(serve, app, ["127.0.0.1:0"], stop)
        pipeline.url = binds[0]
        yield pipeline
        stop.set()
        nursery.cancel_scope.deadline = trio.current_time() + 5


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the other side of a connection tells nobody
        await trio.sleep(0.01)
