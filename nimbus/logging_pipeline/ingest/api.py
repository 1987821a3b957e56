"""POST /ingest: a machine's rows come in. Org, machine, fence and agent are those of its token, whatever it claims."""

from __future__ import annotations

import time

from quart import Blueprint, Response, request

from nimbus.logging_pipeline.ingest.body import parse_batch
from nimbus.logging_pipeline.ingest.intake import Admission, IntakeLimits
from nimbus.logging_pipeline.ingest.unpacking import ENCODINGS, MAX_BODY_BYTES, unpack
from nimbus.logging_pipeline.rows import Source
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.settings import Settings
from nimbus.runtime.serving import error_response, json_response, read_body
from nimbus.wire.tokens import MachineClaims


def plan_intake(settings: Settings) -> IntakeLimits:
    """How much may be on its way, as set."""
    return IntakeLimits(settings.logging_intake_mib * 2**20, settings.logging_machine_intake_mib * 2**20)


def build_ingest_api(services: Services) -> Blueprint:
    """The one route that writes."""
    blueprint = Blueprint("ingest", __name__)

    @blueprint.post("/ingest")
    async def ingest() -> Response:
        machine = await services.access.read_machine()
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "zstd"):
            known = {"Accept-Encoding": ENCODINGS}
            return error_response(415, "unsupported", f"Content-Encoding must be absent or one of {ENCODINGS}", known)
        size = MAX_BODY_BYTES if request.content_length is None else request.content_length
        if size > MAX_BODY_BYTES:
            return _too_large()
        source = Source(machine.org_id, machine.machine_id, machine.fence)
        admission = services.writer.intake.enter(source, size)  # before the body is read: it takes memory
        try:
            return await _take(services, machine, encoding, admission)
        finally:
            admission.leave()

    return blueprint


async def _take(services: Services, machine: MachineClaims, encoding: str, admission: Admission) -> Response:
    body = unpack(await read_body(), encoding)
    if body is None:
        return _too_large()
    if encoding != "identity":
        admission.grow(len(body))
    batch = parse_batch(body, time.time_ns() // 1_000_000)
    del body
    await services.masknet.prepare(machine.org_id)
    source = Source(machine.org_id, machine.machine_id, machine.fence)
    stored = await services.writer.store(source, machine.agent_id, batch.rows, admission)
    services.metrics.refused.inc(len(batch.refused))
    answer: dict[str, object] = {"acked_seq": stored.acked_seq}
    refused = [{"seq": each.seq, "why": each.why} for each in (*batch.refused, *stored.refused)]
    return json_response(answer | ({"refused": refused} if refused else {}))


def _too_large() -> Response:
    return error_response(413, "too_large", f"at most {MAX_BODY_BYTES} bytes once unpacked", {})
