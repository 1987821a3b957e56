"""Webhooks on a real control plane with a real PostgreSQL: what is believed, stored, processed and refused."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from nimbus.control_plane.demand.webhooks import WebhookRules
from nimbus.wire.github import MAX_WEBHOOK_BYTES
from tests.unit.control_plane.github_plane import PREVIOUS, SECRET, GithubPlane, job_event, open_github_plane

pytestmark = pytest.mark.services
GUID = "72d3162e-cc78-11e3-81ab-4c9367dc0958"


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


def replays(github: GithubPlane) -> float:
    return float(
        github.plane.services.metrics.registry.get_sample_value("nimbus_control_plane_webhook_replays_blocked") or 0
    )


def refused(github: GithubPlane) -> dict[str, float]:
    """How many deliveries were refused, by reason."""
    [family] = github.plane.services.metrics.deliveries_refused.collect()
    return {s.labels["reason"]: s.value for s in family.samples if s.name.endswith("_total")}


async def test_a_signed_delivery_is_stored_answered_and_only_then_processed(github: GithubPlane) -> None:
    answer = await github.deliver(job_event("queued"), guid=GUID)
    assert (answer.status_code, answer.json()) == (202, {"delivery": GUID, "state": "stored", "duplicate": False})
    [row] = await github.plane.sql("SELECT * FROM deliveries")
    assert (row["guid"], row["event"], row["action"], row["attempts"]) == (GUID, "workflow_job", "queued", 0)
    assert (row["state"], json.loads(bytes(row["body"]))) == ("received", job_event("queued"))
    assert await github.states() == []
    assert await github.drain() == 1
    assert await github.delivery_states() == ["processed"]
    assert await github.states() == ["queued"]


async def test_both_addresses_and_both_secrets_of_a_rotation_work(github: GithubPlane) -> None:
    assert (await github.deliver(b'{"zen": "x"}', event="ping", secret=PREVIOUS)).status_code == 202
    answer = await github.plane.http.post("/api/webhooks/github", content=b"{}")
    assert answer.status_code == 401


@pytest.mark.parametrize("signature", ["", "sha256=" + "0" * 64, "sha256=zz", "sha1=" + "0" * 40])
async def test_a_wrong_signature_is_unauthorized_and_leaves_nothing(github: GithubPlane, signature: str) -> None:
    headers = {"X-Hub-Signature-256": signature}
    answer = await github.deliver(job_event("queued"), **headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"]
    assert await github.delivery_states() == []
    assert await github.machines() == []


async def test_no_signature_at_all_is_unauthorized(github: GithubPlane) -> None:
    headers = {"X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": GUID}
    answer = await github.plane.http.post("/webhooks/github", json=job_event("queued"), headers=headers)
    assert answer.status_code == 401


async def test_a_body_of_25_mb_is_read_and_one_byte_more_is_too_large(github: GithubPlane) -> None:
    largest = b'{"a": "' + b"x" * (MAX_WEBHOOK_BYTES - 9) + b'"}'
    assert len(largest) == MAX_WEBHOOK_BYTES
    assert (await github.deliver(largest, event="ping")).status_code == 202
    assert (await github.deliver(largest + b" ", event="ping")).status_code == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a":' * 60_000])
async def test_a_signed_body_that_is_no_json_object_is_a_400(github: GithubPlane, body: bytes) -> None:
    assert (await github.deliver(body)).status_code == 400
    assert await github.delivery_states() == []


@pytest.mark.parametrize(
    ("guid", "event"), [("", "ping"), ("' OR 1=1--", "ping"), ("x" * 65, "ping"), (GUID, ""), (GUID, "PING; DROP")]
)
async def test_a_missing_or_malformed_event_or_guid_is_a_400(github: GithubPlane, guid: str, event: str) -> None:
    headers = {"X-GitHub-Delivery": guid, "X-GitHub-Event": event}
    assert (await github.deliver({"zen": "x"}, **headers)).status_code == 400


@pytest.mark.parametrize("broken", [{"id": "7"}, {"id": 2**63}, {"labels": None}, {"created_at": "soon"}])
async def test_a_workflow_job_with_wrong_fields_is_a_400_and_not_stored(
    github: GithubPlane, broken: dict[str, Any]
) -> None:
    answer = await github.deliver(job_event("queued", **broken))
    assert (answer.status_code, answer.json()["error"]) == (400, "refused")
    assert await github.delivery_states() == []


async def test_a_ping_is_answered_and_leaves_nothing(github: GithubPlane) -> None:
    answer = await github.deliver({"zen": "Keep it logically awesome."}, event="ping")
    assert (answer.status_code, answer.json()["state"]) == (202, "pong")
    assert await github.delivery_states() == []


async def test_an_event_that_we_do_not_listen_to_is_refused_politely_and_not_stored(github: GithubPlane) -> None:
    answer = await github.deliver({"action": "created"}, event="sponsorship", guid=GUID)
    assert (answer.status_code, answer.json()["state"], answer.json()["delivery"]) == (202, "ignored", GUID)
    assert "workflow_job" in answer.json()["reason"]
    assert await github.delivery_states() == []


async def test_an_unknown_action_is_recorded_and_ignored(github: GithubPlane) -> None:
    await github.tell("requested")
    assert await github.delivery_states() == ["ignored"]
    assert await github.jobs() == []


async def test_a_second_delivery_of_a_settled_guid_is_a_no_op_and_counted(github: GithubPlane) -> None:
    await github.deliver(job_event("queued"), guid=GUID)
    await github.drain()
    for _ in range(2):
        answer = await github.deliver(job_event("queued"), guid=GUID)
        assert (answer.status_code, answer.json()) == (200, {"delivery": GUID, "state": "processed", "duplicate": True})
    assert await github.drain() == 0
    assert await github.states() == ["queued"]
    assert replays(github) == 2


async def test_fifty_deliveries_of_one_guid_at_once_make_one_machine(github: GithubPlane) -> None:
    async def deliver() -> None:
        assert (await github.deliver(job_event("queued"), guid=GUID)).status_code == 202

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(deliver)
    assert await github.drain() == 1
    assert await github.states() == ["queued"]
    assert replays(github) == 49


async def test_a_replay_with_another_body_under_a_seen_guid_changes_nothing(github: GithubPlane) -> None:
    await github.deliver(job_event("queued"), guid=GUID)
    answer = await github.deliver(job_event("queued", 2), guid=GUID)
    assert answer.json()["duplicate"] is True
    await github.drain()
    assert len(await github.jobs()) == 1


async def test_a_relays_timestamp_is_checked_when_present_and_needed_only_if_the_operator_says_so(
    database_dsn: str, redis_url: str
) -> None:
    rules = WebhookRules((SECRET,), timestamp_required=True)
    async with open_github_plane(database_dsn, redis_url, webhooks=rules) as strict:
        now = str(int(time.time()))
        assert (await strict.deliver({"zen": "x"}, event="ping")).status_code == 401
        header = "X-Hub-Signature-Timestamp"
        assert (await strict.deliver({"zen": "x"}, event="ping", **{header: "1"})).status_code == 401
        assert (await strict.deliver({"zen": "x"}, event="ping", **{header: now})).status_code == 202
        assert refused(strict) == {"timestamp": 2}


async def test_what_is_refused_is_counted_by_its_reason(github: GithubPlane) -> None:
    await github.deliver(job_event("queued"), secret="another")
    await github.deliver(b"[]")
    await github.deliver(job_event("queued", labels=7))
    await github.deliver(job_event("queued"), guid="!")
    assert refused(github) == {"signature": 1, "body": 2, "headers": 1}
