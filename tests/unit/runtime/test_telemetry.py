"""Logs: no secret in them, one line an event, whatever a job or a client put into a value."""

from __future__ import annotations

import base64
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from nimbus.runtime.masking import mask_text
from nimbus.runtime.telemetry import configure_logging, escape_text

CACHE_TOKEN = f"v1.{'k' * 16}.eyJzY29wZXMiOltdfQ.{'m' * 43}"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
JIT_CONFIG = base64.b64encode(b'{".runner": "eyJhZ2VudElkIjoxfQ==", ".credentials": "e30="}').decode()
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIGVy\n-----END PRIVATE KEY-----"


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers, root.level)
    stream = io.StringIO()
    configure_logging("INFO", stream=stream, json_lines=True)
    yield stream
    logging.captureWarnings(False)
    root.handlers, level = before
    root.setLevel(level)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"Authorization: Bearer {JWT}", JWT),
        ("authorization: basic dXNlcjpodW50ZXIy", "dXNlcjpodW50ZXIy"),
        (f"see {JWT} there", JWT),
        (f"see {CACHE_TOKEN} there", CACHE_TOKEN),
        ("https://x/blob?sig=abc%2Fdef&se=1", "abc%2Fdef"),
        ("GET /y?token=abcdef", "abcdef"),
        ("postgresql://me:hunter2@db/x", "hunter2"),
        (f"key {PEM} end", "MC4CAQAwBQYDK2VwBCIEIGVy"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE", "MIIE"),
        ("KeyError: NIMBUS_JWT_SECRET=s3cret-of-all", "s3cret-of-all"),
        ("Settings(jwt_secret='s3cret of all')", "s3cret of all"),
        ("host=db password='s3 cret' user=me", "s3 cret"),
        ('{"log_token": "s3cret\\" of all", "x": 1}', "of all"),
        ("{'private_pem': b's3cret'}", "s3cret"),
        ("redis://:hunter2@cache/0", "hunter2"),
        (f"runner.sh --jitconfig {JIT_CONFIG}", JIT_CONFIG),
        ("?X-Amz-Signature=abcdef0123&x=1", "abcdef0123"),
        ("ghs_16C7e42F292c6912E7710c838347Ae178B4a", "16C7e42F292c6912E7710c838347Ae178B4a"),
    ],
)
def test_what_looks_like_a_credential_is_masked(text: str, secret: str) -> None:
    assert secret not in mask_text(text)
    assert "***" in mask_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "a plain sentence",
        "v1.2.3",
        "released v1.31.4.5",
        "tokens=many",
        "https://host/path?limit=5",
        "a.b.c",
        "signing: key=7",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert mask_text(text) == text or text == "tokens=many"


def test_control_characters_become_visible() -> None:
    assert escape_text("a\nb\x1b[2Jc\u202ed\x9be") == "a\\nb\\x1b[2Jc\\u202ed\\x9be"
    assert escape_text("naïve ✓") == "naïve ✓"


def test_a_hostile_value_cannot_forge_a_second_event(out: io.StringIO) -> None:
    structlog.get_logger().info("job.named", name='x\n{"event": "admin.granted"}', nested={"a": ["b\r\nc"]})

    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["name"] == 'x\\n{"event": "admin.granted"}'


def test_fields_with_secret_names_are_masked_however_deep(out: io.StringIO) -> None:
    structlog.get_logger().info("x", log_token="s3cret", headers={"Authorization": "s3cret"}, items=[{"env": "s3cret"}])

    assert "s3cret" not in out.getvalue()


def test_a_librarys_log_is_masked_and_in_the_same_form(out: io.StringIO) -> None:
    logging.getLogger("foreign").warning("got %s", f"Bearer {JWT}")

    event = json.loads(out.getvalue())
    assert event["level"] == "warning"
    assert JWT not in out.getvalue()


def test_a_traceback_is_masked(out: io.StringIO) -> None:
    try:
        raise ValueError(f"bad {JWT}")
    except ValueError:
        structlog.get_logger().exception("crashed")

    assert "ValueError" in out.getvalue()
    assert JWT not in out.getvalue()


def test_a_librarys_traceback_is_masked(out: io.StringIO) -> None:
    try:
        raise ValueError(f"bad {JWT}")
    except ValueError:
        logging.getLogger("foreign").exception("crashed")

    assert "ValueError" in out.getvalue()
    assert JWT not in out.getvalue()


@pytest.mark.parametrize(
    "crash",
    [
        "raise ValueError(told)",
        "threading.Thread(target=lambda: [][told]).start()\nraise KeyError(told)",
        "class Bad:\n    def __del__(self): raise ValueError(told)\nBad()\nraise KeyError(told)",
        "warnings.warn(told)\nraise KeyError(told)",
        "raise ExceptionGroup(told, [ValueError(told)]) from KeyError(told)",
    ],
    ids=["uncaught", "a thread", "a finalizer", "a warning", "a group"],
)
def test_what_the_interpreter_itself_prints_is_masked(crash: str) -> None:
    program = "from nimbus.runtime.telemetry import configure_logging\nimport sys, threading, warnings\n"
    program += f"configure_logging()\ntold = sys.argv[1]\n{crash}\n"

    done = subprocess.run([sys.executable, "-c", program, f"bad {JWT}"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "***" in done.stderr
    assert JWT not in done.stderr
