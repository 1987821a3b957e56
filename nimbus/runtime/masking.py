"""What looks like a credential in a text, and the mask over it; also for what the interpreter itself prints.

Knows forms, and no secret: whoever knows one leaves it out of what he tells. Imports little, so that a command may load
it while it ends. Called by telemetry.py for every value that is logged, and wherever an error becomes a line on stderr.
"""

from __future__ import annotations

import re
import sys
import threading
import traceback
from types import TracebackType

MASK = "***"
_NAMED = (
    r"((?:token|secret|password|passwd|private_key|private_pem|jit_?config|api_key|credential|signature"
    r"|(?<![a-z])(?:sig|pem))(?:_next|_previous)?"
)
_QUOTED = r"""b?(?:'(?:[^'\\]|\\.)*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$))"""  # one that was cut short has no end
_SECRET_TEXT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|$)", re.DOTALL), MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {MASK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), MASK),
    (re.compile(r"\bv1\.[A-Za-z0-9_-]{16}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}"), MASK),  # a cache token
    (re.compile(r"\bgh[opsur]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}"), MASK),
    (re.compile(r"\beyIucnVubmVy[A-Za-z0-9+/=_-]{8,}"), MASK),  # a runner's configuration: base64 of {".runner...
    (re.compile(rf"(?i){_NAMED})=(?:{_QUOTED}|[^&\s\"']+)"), rf"\1={MASK}"),  # a URL, a variable, a value's repr
    (re.compile(rf"(?i){_NAMED}[\"'])\s*:\s*{_QUOTED}"), rf"\1: {MASK}"),  # JSON, a dictionary's repr
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^/\s:@]*):[^/\s@]+@"), rf"\1:{MASK}@"),
)


def mask_text(text: str) -> str:
    """The text with what looks like a credential replaced."""
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def mask_crashes() -> None:
    """From now on the tracebacks that the interpreter prints on stderr are masked too; others' hooks stay."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_crash
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _print_unraisable
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_thread


def _print_crash(_kind: type[BaseException], error: BaseException, _frames: TracebackType | None) -> None:
    _print("", error)


def _print_unraisable(seen: sys.UnraisableHookArgs) -> None:
    if seen.exc_value is not None:
        _print(f"{seen.err_msg or 'Exception ignored in'}: {seen.object!r}\n", seen.exc_value)


def _print_thread(seen: threading.ExceptHookArgs) -> None:
    if seen.exc_value is not None and not isinstance(seen.exc_value, SystemExit):
        _print(f"Exception in thread {seen.thread.name if seen.thread else '?'}:\n", seen.exc_value)


def _print(before: str, error: BaseException) -> None:
    if sys.stderr is not None:  # a process without one, or one that is ending
        sys.stderr.write(mask_text(before + "".join(traceback.format_exception(error))))
