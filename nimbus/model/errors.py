"""Errors by who must act. Drivers map foreign exceptions to these at the edge.

A message carries ids and the next step; it never contains a secret or a foreign traceback.
"""

from __future__ import annotations


class NimbusError(Exception):
    """Root of every error that Nimbus raises on purpose."""

    exit_code = 1


class Refused(NimbusError):
    """The caller asked for something that cannot be granted; the caller must change the request."""

    exit_code = 2


class NotFound(Refused):
    """What the caller names does not exist, or does not exist for that caller."""


class Unauthorized(Refused):
    """No valid credential came with the request."""


class Forbidden(Refused):
    """The credential is valid but does not reach this far."""


class Conflict(NimbusError):
    """Somebody else did it first; read the current state and decide again."""


class Gone(NimbusError):
    """What was asked for is no longer wanted: stop without complaint."""


class Fenced(NimbusError):
    """The lease belongs to another now: stop at once, write nothing more."""


class HostFault(NimbusError):
    """The host is at fault: the platform engineer must act. The job may run elsewhere."""

    exit_code = 125


class GuestFault(NimbusError):
    """The guest is at fault (kernel panic, no hello, bad image): its owner must act."""

    exit_code = 125


class Unavailable(NimbusError):
    """A dependency is away for now: retry after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Unavailable):
    """The caller asks too often: retry after `retry_after_s` seconds."""


class IllegalTransition(NimbusError):
    """A state machine was asked for a step that its table does not hold: a bug, not bad luck."""
