"""ClickHouse's HTTP protocol over the embedded engine's sessions, as a plain ASGI application.

Speaks what real clients send (`/?query=&database=&param_x=&setting=`, inline inserts in any format, Basic
auth, compressed bodies) and answers with ClickHouse's own headers. It never lets two statements or a table
function through (see `statements`). Called by `main` in the engine's own process; never imported by the pipeline.
"""

from __future__ import annotations

import base64
import gzip
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import lz4.frame

from nimbus.logging_pipeline.engine.forms import parse_form
from nimbus.logging_pipeline.engine.lanes import EngineLanes
from nimbus.logging_pipeline.engine.session import DEFAULT_DATABASE, EngineRefusal, EngineReply, EngineRequest
from nimbus.logging_pipeline.engine.statements import DEFAULT_FORMAT, READ_KINDS, parse_statement
from nimbus.model.errors import Refused

MAX_BODY_BYTES = 64 * 2**20
_SETTING = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_DATABASE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NOT_SETTINGS = {"query", "database", "default_format", "user", "password", "session_id", "session_check"}
_NOT_SETTINGS |= {"session_timeout", "query_id", "quota_key", "wait_end_of_query", "compress", "decompress", "role"}
_NOT_SETTINGS |= {"buffer_size", "client_protocol_version", "enable_http_compression"}
_NOT_SETTINGS |= {"send_progress_in_http_headers", "http_headers_progress_interval_ms"}
SYNTAX_ERROR, NOT_IMPLEMENTED, AUTHENTICATION_FAILED, TOO_LARGE_BODY, READONLY = 62, 48, 516, 307, 164
_STATUS = {SYNTAX_ERROR: 400, NOT_IMPLEMENTED: 501, AUTHENTICATION_FAILED: 403, TOO_LARGE_BODY: 413, 60: 404, 81: 404}
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Credentials:
    """The one user of this engine; the password is random and lives as long as the process."""

    username: str
    password: str = field(repr=False)


def engine_app(lanes: EngineLanes, credentials: Credentials) -> Callable[..., Awaitable[None]]:
    """The ASGI application."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        if scope["path"] == "/ping":
            await _answer(send, 200, b"Ok.\n", {})
            return
        started = time.monotonic()
        try:
            _authenticate(scope, credentials)
            body = await _read_body(receive)
            reply = await lanes.run(_parse_request(scope, body, lanes.table_functions))
        except EngineRefusal as refusal:
            await _refuse(send, refusal)
            return
        except Refused as error:
            await _refuse(send, EngineRefusal(SYNTAX_ERROR, f"DB::Exception: {error}. (SYNTAX_ERROR)"))
            return
        await _answer(send, 200, reply.body, _reply_headers(reply, time.monotonic() - started))

    return app


def _authenticate(scope: dict[str, Any], credentials: Credentials) -> None:
    headers = {name.lower(): value for name, value in scope["headers"]}
    user, key = headers.get(b"x-clickhouse-user", b""), headers.get(b"x-clickhouse-key", b"")
    scheme, _, encoded = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"basic":
        try:
            user, _, key = base64.b64decode(encoded, validate=True).partition(b":")
        except ValueError:
            user, key = b"", b""
    known = hmac.compare_digest(user, credentials.username.encode())
    if not hmac.compare_digest(key, credentials.password.encode()) or not known:
        message = "DB::Exception: Authentication failed: password is incorrect, or there is no such user."
        raise EngineRefusal(AUTHENTICATION_FAILED, f"{message} (AUTHENTICATION_FAILED)")


async def _read_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused("the client went away")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise EngineRefusal(TOO_LARGE_BODY, f"DB::Exception: a request holds at most {MAX_BODY_BYTES} bytes")
        if not message.get("more_body"):
            return b"".join(parts)


def _parse_request(scope: dict[str, Any], body: bytes, table_functions: frozenset[str]) -> EngineRequest:
    headers = {name.lower(): value for name, value in scope["headers"]}
    body = _decompress(body, headers.get(b"content-encoding", b"").decode("latin-1").strip().lower())
    form: dict[str, str] = {}
    content_type = headers.get(b"content-type", b"").decode("latin-1").strip()
    if content_type.lower().startswith("multipart/"):
        form, body = parse_form(content_type, body), b""
    try:
        pairs = parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise Refused("the query string is not UTF-8") from None
    arguments = form | dict(pairs)
    text = b"\n".join(part for part in (arguments.get("query", "").encode(), body) if part)
    database = arguments.get("database") or DEFAULT_DATABASE
    if not _DATABASE.fullmatch(database) or database.lower() == "default":
        raise Refused(f"the database {database[:64]!r} is not served here")
    params = {name[6:]: value for name, value in arguments.items() if name.startswith("param_")}
    settings = {n: v for n, v in arguments.items() if n not in _NOT_SETTINGS and not n.startswith("param_")}
    for name in settings:
        if not _SETTING.fullmatch(name):
            raise Refused(f"{name[:64]!r} is no setting")
    statement = parse_statement(text, table_functions)
    # `readonly` never reaches the session: once set there, it could not be taken back
    reads_only = settings.pop("readonly", "0") != "0" or scope["method"] == "GET"
    if reads_only and statement.kind not in READ_KINDS:
        raise EngineRefusal(READONLY, f"DB::Exception: Cannot {statement.kind} in readonly mode. (READONLY)")
    default_format = arguments.get("default_format") or DEFAULT_FORMAT
    return EngineRequest(statement, database, default_format, settings, params)


def _decompress(body: bytes, encoding: str) -> bytes:
    try:
        match encoding:
            case "" | "identity":
                return body
            case "gzip":
                plain = gzip.decompress(body)
            case "lz4":
                plain = lz4.frame.decompress(body)
            case _:
                raise EngineRefusal(NOT_IMPLEMENTED, "DB::Exception: only gzip and lz4 bodies are read here")
    except (RuntimeError, OSError, EOFError) as error:
        raise Refused("the compressed body cannot be read") from error
    return plain


def _reply_headers(reply: EngineReply, elapsed_s: float) -> dict[str, str]:
    read, written = (0, reply.rows) if reply.wrote else (reply.rows, 0)
    summary = {
        "read_rows": str(read),
        "read_bytes": str(0 if reply.wrote else reply.bytes),
        "written_rows": str(written),
        "written_bytes": str(reply.bytes if reply.wrote else 0),
        "elapsed_ns": str(int(elapsed_s * 1e9)),
    }
    headers = {"X-ClickHouse-Summary": json.dumps(summary), "X-ClickHouse-Timezone": "UTC"}
    return headers | ({} if reply.wrote else {"X-ClickHouse-Format": reply.format})


async def _refuse(send: Send, refusal: EngineRefusal) -> None:
    body = f"Code: {refusal.code}. {refusal}\n".encode()
    await _answer(send, _STATUS.get(refusal.code, 500), body, {"X-ClickHouse-Exception-Code": str(refusal.code)})


async def _answer(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    every = {"Content-Type": "text/plain; charset=UTF-8", "Content-Length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in every.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
