"""How `nimbus logs` reads on where a pipeline restarts, and when it gives up, against a pipeline of our own making."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from quart import Response, request

from nimbus.cli.logreading import LogReader, Reply
from nimbus.model.errors import NimbusError, Unauthorized
from nimbus.runtime.serving import build_app, json_response, serve_app
from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.unit.logging_pipeline.rig import SECRET


@dataclass
class Pipeline:
    """Answers with what stands in its lists, one after another, and remembers what it was asked."""

    url: str = ""
    streams: list[str] = field(default_factory=list)
    pages: list[tuple[int, Reply]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def answer_stream(self) -> Response:
        self.asked.append(request.headers.get("Last-Event-ID", ""))
        return Response(self.streams.pop(0), content_type="text/event-stream")

    def answer_page(self) -> Response:
        self.asked.append(request.args.get("after", ""))
        status, reply = self.pages.pop(0)
        return json_response(reply, status, headers={"Retry-After": "0"})


@asynccontextmanager
async def open_pipeline() -> AsyncIterator[Pipeline]:
    pipeline, app, stop = Pipeline(), build_app("pipeline_of_tests"), trio.Event()

    @app.get("/logs/jobs/1/follow")
    async def follow() -> Response:
        await trio.lowlevel.checkpoint()
        return pipeline.answer_stream()

    @app.get("/logs/jobs/1")
    async def page() -> Response:
        await trio.lowlevel.checkpoint()
        return pipeline.answer_page()

    async with trio.open_nursery() as nursery:
        (pipeline.url,) = await nursery.start(serve_app, app, ["127.0.0.1:0"], stop)
        yield pipeline
        stop.set()


def told(number: int) -> str:
    return f"id: 7.1.{number}\ndata: {json.dumps({'seq': number})}\n\n"


def end(why: str) -> str:
    return f"event: end\ndata: {json.dumps({'why': why})}\n\n"


def given_token() -> str:
    return render_token(hmac_key(SECRET), subject="x", audience=Audience.LOGS_READ, now_s=0, ttl_s=60)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIMBUS_JWT_SECRET", SECRET)


async def follow(pipeline: Pipeline, token: str | None = None) -> list[int]:
    """The numbers of the rows that were told."""
    events = LogReader(pipeline.url, token).follow("/logs/jobs/1", "")
    return [data["seq"] async for kind, data in events if kind == "row"]


async def test_a_stream_that_breaks_or_expires_goes_on_from_the_last_row() -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            pipeline.streams = [
                f"retry: 2000\n\n{told(0)}{told(1)}",
                f": alive\n\n{told(2)}{end('expired')}",
                end("complete"),
            ]
            assert await follow(pipeline) == [0, 1, 2]
            assert pipeline.asked == ["", "7.1.1", "7.1.2"]


@pytest.mark.parametrize(("why", "words"), [("revoked", "was revoked"), ("expired", "ran out")])
async def test_a_given_token_that_ended_is_said_and_not_tried_again(why: str, words: str) -> None:
    seen: list[NimbusError] = []
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            pipeline.streams = [told(0) + end(why)]
            try:
                await follow(pipeline, given_token())
            except Unauthorized as error:
                seen.append(error)
    assert [words in str(error) for error in seen] == [True]


async def test_pages_go_on_after_a_moment_in_which_the_pipeline_was_away() -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            pipeline.pages = [
                (200, {"rows": [1, 2], "next": "c1", "more": True}),
                (503, {"error": "unavailable", "message": "the log store is away: retry"}),
                (200, {"rows": [3], "next": "c2", "more": False}),
            ]
            pages = [
                page["rows"] async for page in LogReader(pipeline.url, None).pages("/logs/jobs/1", {}, "rows", None)
            ]
    assert pages == [[1, 2], [3]]
    assert pipeline.asked == ["", "c1", "c1"]


async def test_a_pipeline_that_answers_says_itself_what_is_wrong() -> None:
    said = ""
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            pipeline.pages = [(503, {"error": "unavailable", "message": "the log store is away: retry"})]
            try:
                async for _ in LogReader(pipeline.url, None).pages("/logs/jobs/1", {}, "rows", 5):
                    said = "a page"
            except NimbusError as error:
                said = str(error)
    assert said == "the log store is away: retry"
