"""What a person at a terminal sees of the agent's events: warnings and worse, one line each, on stderr.

The same modules log every event where they run as a service. Called by the commands that use them directly.
"""

from __future__ import annotations

import logging
import sys

import structlog

from nimbus.runtime.telemetry import mask_secrets


def quiet_events() -> None:
    """Drop events below a warning; stdout stays the command's own."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            mask_secrets,
            structlog.processors.LogfmtRenderer(key_order=["level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
