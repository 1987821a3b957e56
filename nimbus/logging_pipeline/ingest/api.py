"""POST /ingest: a machine's rows come in. Org, machine, fence and agent are those of its token, whatever it claims."""

from __future__ import annotations

import time
import zlib

from quart import Blueprint, Response, request

from nimbus.logging_pipeline.ingest.body import parse_batch
from nimbus.logging_pipeline.rows import Source
from nimbus.logging_pipeline.services import Services
from nimbus.model.errors import Refused
from nimbus.runtime.serving import error_response, json_response

MAX_BODY_BYTES = 4 * 2**20
MAX_RATIO = 100  # plain bytes for each compressed one: text seldom reaches 20, bombs 1000


def build_ingest_api(services: Services) -> Blueprint:
    """The one route that writes."""
    blueprint = Blueprint("ingest", __name__)

    @blueprint.post("/ingest")
    async def ingest() -> Response:
        machine = await services.access.read_machine()
        body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding == "gzip":
            plain = inflate(body)
            if plain is None:
                return error_response(413, "too_large", f"at most {MAX_BODY_BYTES} bytes once unpacked", {})
            body = plain
        elif encoding != "identity":
            raise Refused("Content-Encoding must be gzip or absent")
        batch = parse_batch(body, time.time_ns() // 1_000_000)
        source = Source(machine.org_id, machine.machine_id, machine.fence)
        stored = await services.writer.store(source, machine.agent_id, batch.rows, len(body))
        services.metrics.refused.inc(len(batch.refused))
        answer: dict[str, object] = {"acked_seq": stored.acked_seq}
        refused = [{"seq": each.seq, "why": each.why} for each in (*batch.refused, *stored.refused)]
        return json_response(answer | ({"refused": refused} if refused else {}))

    return blueprint


def inflate(body: bytes) -> bytes | None:
    """The content of a gzip body; None where it is larger than what a body may hold; Refused where it is no gzip."""
    limit = min(MAX_BODY_BYTES, len(body) * MAX_RATIO)
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refused("the body is no gzip") from error
    if len(plain) > limit:
        return None
    if not unpacker.eof or unpacker.unused_data:
        raise Refused("the gzip body is cut short or has something behind it")
    return plain
