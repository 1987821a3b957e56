"""What the log store's faults look like from outside: wait and come again, never a loss, never a secret."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import pytest
import trio
from quart import Response, request

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.runtime.serving import build_app, serve_app
from tests.unit.logging_pipeline.rig import open_rig, row

_HIDDEN = "Code: 241. DB::Exception: Memory limit exceeded at 10.0.0.7:9000"
FAULTS: dict[str, Response | None] = {
    "slow": None,
    "hidden behind 200": Response(_HIDDEN, status=200),
    "told in a header of a 200": Response(_HIDDEN, status=200, headers={"X-ClickHouse-Exception-Code": "241"}),
    "readonly": Response("Code: 164. DB::Exception: readonly", 500, headers={"X-ClickHouse-Exception-Code": "164"}),
    "refuses us": Response("Code: 516. password", 403, headers={"X-ClickHouse-Exception-Code": "516"}),
    "bad gateway": Response("<html>", status=502),
    "busy": Response("", status=503),
}


@dataclass
class Proxy:
    """Stands before the engine and may answer inserts itself."""

    endpoint: Endpoint
    fault: str | None = None
    lose_answers: int = 0


@asynccontextmanager
async def open_proxy(engine: Endpoint) -> AsyncIterator[Proxy]:
    stop = trio.Event()
    app = build_app("proxy", max_body_bytes=None)
    proxy = Proxy(engine)
    async with httpx2.AsyncClient(trust_env=False) as client, trio.open_nursery() as nursery:

        @app.route("/", methods=["GET", "POST"])
        async def forward() -> Response:
            body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
            inserts = body.startswith(b"INSERT")
            if inserts and proxy.fault is not None:
                answer = FAULTS[proxy.fault]
                if answer is None:
                    await trio.sleep(30)
                assert answer is not None
                return Response(await answer.get_data(as_text=False), answer.status_code, answer.headers)
            headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
            url = f"{engine.url}/?{request.query_string.decode()}"
            reply = await client.request(request.method, url, content=body, headers=headers)
            if inserts and proxy.lose_answers:
                proxy.lose_answers -= 1
                return Response("", status=504)
            return Response(reply.content, reply.status_code, dict(reply.headers))

        binds = await nursery.start(
            lambda task_status: serve_app(app, ["127.0.0.1:0"], stop, graceful_s=0.2, task_status=task_status)
        )
        proxy.endpoint = replace(engine, url=binds[0])
        yield proxy
        stop.set()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failing_store_is_a_503_and_the_retry_loses_and_repeats_nothing(
    tmp_path: Path, engine: Endpoint, fault: str
) -> None:
    with trio.fail_after(60):
        async with open_proxy(engine) as proxy, open_rig(tmp_path, proxy.endpoint, timeout_s=1) as rig:
            await rig.ingest([row(0)])
            proxy.fault = fault
            refused = await rig.ingest([row(0), row(1)])
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert not any(word in refused.text for word in ("10.0.0.7", "password", "DB::", "127.0.0.1"))
            proxy.fault = None
            assert (await rig.ingest([row(0), row(1)])).json() == {"acked_seq": 1}
            assert await rig.messages("/logs/machines/7") == ["line 0", "line 1"]


async def test_an_insert_whose_answer_was_lost_is_not_stored_again(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_proxy(engine) as proxy, open_rig(tmp_path, proxy.endpoint) as rig:
            proxy.lose_answers = 1
            assert (await rig.ingest([row(0), row(1)])).status_code == 503
            assert (await rig.ingest([row(1), row(2)])).json() == {"acked_seq": 2}
            counted = await rig.services.table.rows_of(
                f"SELECT count() AS n FROM {rig.services.table.name}"  # noqa: S608 - our own name
            )
            assert int(counted[0]["n"]) == 3
