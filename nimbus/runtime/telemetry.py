"""Structured logs: one event a line, secrets masked, hostile text harmless.

Never raises into the caller and never holds a secret itself. `configure_logging` is called once by each `main`;
modules take their logger by `structlog.get_logger()` and log events (`lease.granted machine=7`), not sentences.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from nimbus.runtime.masking import MASK, mask_crashes, mask_text

MAX_VALUE_CHARS = 16384
_SECRET_FIELD = re.compile(
    r"(?i)(^|_|-)(authorization|cookie|password|passwd|secret|token|private_key|private_pem|pem|signature|jit_?config|api_key|env|dsn)s?$"
)
# C0 and C1 controls, DEL, and the bidirectional overrides that make a terminal show something else than is there
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def escape_text(text: str) -> str:
    """One line without control characters: a job cannot forge a log line or drive a terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _clean(name: str, value: object, *, escape: bool) -> object:
    if _SECRET_FIELD.search(name) and value is not None:
        return MASK
    if isinstance(value, str):
        cut = mask_text(value[:MAX_VALUE_CHARS])
        return escape_text(cut) if escape else cut
    if isinstance(value, Mapping):
        return {str(key): _clean(str(key), item, escape=escape) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean("", item, escape=escape) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _clean("", str(value), escape=escape)


def mask_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor that stands last before rendering; a traceback keeps its lines, JSON escapes them."""
    for name in list(event):
        event[name] = _clean(name, event[name], escape=name != "exception")
    return event


def configure_logging(level: str = "INFO", *, stream: TextIO | None = None, json_lines: bool | None = None) -> None:
    """Send structlog and the standard library's loggers to one stream: JSON lines, or columns on a terminal."""
    out = sys.stderr if stream is None else stream
    as_json = not out.isatty() if json_lines is None else json_lines
    renderer: Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.captureWarnings(True)
    mask_crashes()
    root = logging.getLogger()
    root.handlers = [handler]
    # the libraries' own chatter (each request of an HTTP client) is of interest only when debugging
    root.setLevel(number if number <= logging.DEBUG else max(number, logging.WARNING))
