"""The control plane's double of `make bench-logs`: `python -m bench.logplane PORT KEY_FILE`.

Every machine that is asked about has run the job of its own number, in the org that the number tells; nothing is looked
up, so that what is measured is the pipeline. It serves until SIGTERM. Started by loghost.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio
from quart import Response, request

from nimbus.runtime.serving import App, build_app, json_response, serve_app
from nimbus.runtime.signals import watch_signals
from nimbus.wire.tokens import SigningKey, load_ed25519_key, render_jwks

SECRETS = 20  # that an org has registered; none is printed, and all of the output is searched for them
ORGS_STEP = 1_000_000  # machine 3_000_017 is one of org 3


def org_of(machine_id: int) -> int:
    return machine_id // ORGS_STEP


def build_plane(key: SigningKey) -> App:
    """What the pipeline asks a control plane for."""
    app = build_app("bench_plane")

    @app.get("/healthz")
    async def healthz() -> Response:
        await trio.lowlevel.checkpoint()
        return json_response({"status": "ok"})

    @app.get("/.well-known/jwks.json")
    async def jwks() -> Response:
        await trio.lowlevel.checkpoint()
        return json_response(render_jwks([key.verify_key()]), headers={"Cache-Control": "max-age=3600"})

    @app.get("/api/internal/jobs/<int:job_id>/machines")
    async def machines(job_id: int) -> Response:
        await trio.lowlevel.checkpoint()
        return json_response(render_job(job_id))

    @app.get("/api/internal/jobs/machines")
    async def many_machines() -> Response:
        await trio.lowlevel.checkpoint()
        asked = [int(word) for word in request.args.get("ids", "").split(",") if word]
        return json_response({"jobs": [render_job(job_id) for job_id in asked]})

    @app.get("/api/internal/machines/<int:machine_id>/<int:fence>/job")
    async def job_of(machine_id: int, fence: int) -> Response:
        await trio.lowlevel.checkpoint()
        org_id = org_of(machine_id)
        link = {"org_id": org_id, "repo_id": org_id, "job_id": machine_id, "run_attempt": 1}
        return json_response({"machine_id": machine_id, "fence": fence, **link})

    @app.get("/api/internal/orgs/<int:org_id>/masks")
    async def masks(org_id: int) -> Response:
        await trio.lowlevel.checkpoint()
        return json_response({"values": [f"secret-{org_id}-{number:032x}" for number in range(SECRETS)]})

    @app.get("/api/internal/tokens/revoked")
    async def revoked() -> Response:
        await trio.lowlevel.checkpoint()
        return json_response({"jtis": []})

    return app


def render_job(job_id: int) -> dict[str, object]:
    """A job that runs on the machine of its number."""
    ran = [{"machine_id": job_id, "fence": 1}]
    org_id = org_of(job_id)
    return {"job_id": job_id, "org_id": org_id, "repo_id": org_id, "state": "in_progress", "machines": ran}


async def serve(port: int, key: SigningKey) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_signals, stop)
        await serve_app(build_plane(key), [f"127.0.0.1:{port}"], stop)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(serve, int(sys.argv[1]), load_ed25519_key(Path(sys.argv[2]).read_text()))
