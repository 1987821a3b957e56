"""Who gets in: tokens of the right key, audience and org, and nobody else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.keys import THROTTLE_S
from nimbus.wire.tokens import Audience, hmac_key, new_ed25519_key, render_token
from tests.unit.logging_pipeline.rig import SECRET, bearer, open_rig, row


async def test_two_orgs_never_see_each_other(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            rig.control.add_job(200, 12, "in_progress", [(8, 1)])
            await rig.ingest([row(0, "of one")], org=1, machine=7)
            await rig.ingest([row(0, "of twelve")], org=12, machine=8)
            assert await rig.messages("/logs/jobs/100", org=1) == ["of one"]
            assert await rig.messages("/logs/jobs/200", org=12) == ["of twelve"]
            assert await rig.messages("/logs/machines/8", org=1) == []
            for path in ("/logs/jobs/200", "/logs/jobs/200/follow"):
                foreign = await rig.read(path, org=1)
                absent = await rig.read(path.replace("200", "999"), org=1)
                assert (foreign.status_code, absent.status_code) == (404, 404)
                assert foreign.json()["message"].replace("200", "") == absent.json()["message"].replace("999", "")


async def test_an_operator_without_an_org_reads_them_all(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(200, 12, "in_progress", [(8, 1)])
            await rig.ingest([row(0, "of twelve")], org=12, machine=8)
            assert await rig.messages("/logs/jobs/200", org=None) == ["of twelve"]
            assert await rig.messages("/logs/machines/8", org=None) == ["of twelve"]
            assert (await rig.read("/logs/machines/9", org=None)).status_code == 404


async def test_writing_needs_a_machine_token(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            other = render_token(
                new_ed25519_key(), subject="m", audience=Audience.LOGS, now_s=time.time(), ttl_s=60,
                claims={"org_id": 1, "machine_id": 7, "fence": 1, "agent_id": "a"},
            )  # fmt: skip
            of_agents = render_token(
                rig.control.signing_key, subject="m", audience=Audience.AGENT, now_s=time.time(), ttl_s=60
            )
            expired = render_token(
                rig.control.signing_key, subject="m", audience=Audience.LOGS, now_s=time.time() - 600, ttl_s=60,
                claims={"org_id": 1, "machine_id": 7, "fence": 1, "agent_id": "a"},
            )  # fmt: skip
            for bad in (other, of_agents, expired, rig.read_token(), SECRET, "a.b.c", rig.machine_token(org_id="1")):
                reply = await rig.client.post(f"{rig.url}/ingest", json={"rows": []}, headers=bearer(bad))
                assert reply.status_code == 401, bad
                assert reply.headers["www-authenticate"] == "Bearer"
            assert (await rig.client.post(f"{rig.url}/ingest", json={"rows": []})).status_code == 401


async def test_reading_needs_a_read_token(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            admin = render_token(hmac_key(SECRET), subject="x", audience=Audience.ADMIN, now_s=time.time(), ttl_s=60)
            for bad in (SECRET, admin, rig.machine_token(), "nonsense"):
                for path in ("/logs/jobs/1", "/logs/machines/1", "/logs/jobs/1/follow", "/logs/machines/1/follow"):
                    assert (await rig.client.get(rig.url + path, headers=bearer(bad))).status_code == 401


async def test_a_new_key_is_found_by_one_fetch(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            assert (await rig.ingest([row(0)])).status_code == 200
            assert rig.control.key_set_fetches == 1
            rig.control.signing_key = new_ed25519_key()
            assert (await rig.ingest([row(0)])).status_code == 401
            rig.control.published.append(rig.control.signing_key)
            assert (await rig.ingest([row(0)])).status_code == 200
            assert (await rig.ingest([row(1)])).status_code == 200
            assert rig.control.key_set_fetches == 3  # one for each token whose key was not known


async def test_the_first_machine_is_told_to_wait_while_the_keys_cannot_be_fetched(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.away = True
            reply = await rig.ingest([row(0)])
            assert (reply.status_code, reply.headers["retry-after"]) == (503, f"{THROTTLE_S:.0f}")


@pytest.mark.parametrize("path", ["x", "1%20OR%201=1", "-1", "99999999999999999999", "1.5", "%EF%BC%91"])
async def test_an_id_that_is_no_number_is_refused(tmp_path: Path, engine: Endpoint, path: str) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            assert (await rig.read(f"/logs/jobs/{path}")).status_code == 400
            assert (await rig.read(f"/logs/machines/{path}")).status_code == 400


async def test_metrics_are_for_loopback_without_a_token(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest([row(0)])
            reply = await rig.client.get(f"{rig.url}/metrics")
            assert "nimbus_logs_rows_stored_total 1.0" in reply.text
            assert (await rig.client.get(f"{rig.url}/healthz")).status_code == 200
            assert (await rig.client.get(f"{rig.url}/readyz")).status_code == 200
