"""What ends with a token: streams within seconds, reads at once, tickets that were made for it."""

from __future__ import annotations

from pathlib import Path

import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from tests.unit.logging_pipeline.rig import ControlPlane, Rig, bearer, open_rig, row, wait_until


async def revoke(rig: Rig, *jtis: str) -> None:
    """As the control plane tells it, once the pipeline has heard of it."""
    rig.control.revoked += jtis
    await wait_until(lambda: all(rig.services.access.revoked.holds(jti) for jti in jtis))


async def read(rig: Rig, jti: str | None, path: str = "/logs/machines/7") -> int:
    reply = await rig.client.get(f"{rig.url}{path}", headers=bearer(rig.read_token(jti=jti)))
    return reply.status_code


async def test_a_stream_ends_with_its_token_and_others_go_on(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine, logging_revocation_interval=0.1) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            async with rig.follow("/logs/jobs/100", jti="a") as mine, rig.follow("/logs/jobs/100", jti="b") as other:
                await rig.ingest([row(0)])
                assert [(await anext(events))["seq"] for events in (mine, other)] == [0, 0]
                await revoke(rig, "a")
                ended = await anext(mine)
                await rig.ingest([row(1)])
                told = await anext(other)
            assert (ended["event"], ended["why"], ended["cursor"]) == ("end", "revoked", "7.1.0")
            assert told["seq"] == 1


async def test_a_revoked_token_opens_nothing_and_makes_no_ticket(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine, logging_revocation_interval=0.1) as rig:
            before = [await read(rig, "a"), await read(rig, "b"), await read(rig, None)]
            await revoke(rig, "a")
            after = [await read(rig, "a"), await read(rig, "b"), await read(rig, None)]
            follow = await read(rig, "a", "/logs/machines/7/follow")
            ticket = await rig.client.post(
                f"{rig.url}/logs/tickets", json={"machine_id": 7}, headers=bearer(rig.read_token(jti="a"))
            )
            assert (before, after) == ([200, 200, 200], [401, 200, 200])
            assert (follow, ticket.status_code) == (401, 401)


async def test_a_ticket_of_a_token_that_is_revoked_opens_nothing_and_what_it_opened_ends(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine, logging_revocation_interval=0.1) as rig:
            made = await rig.client.post(
                f"{rig.url}/logs/tickets", json={"machine_id": 7}, headers=bearer(rig.read_token(jti="a"))
            )
            ticket = made.json()["ticket"]
            async with rig.follow("/logs/machines/7", ticket=ticket) as events:
                await rig.ingest([row(0)])
                await anext(events)
                await revoke(rig, "a")
                assert (await anext(events))["why"] == "revoked"
            late = await rig.client.get(f"{rig.url}/logs/machines/7/follow?ticket={ticket}")
            assert (late.status_code, "revoked" in late.text) == (401, True)


async def test_a_stream_by_ticket_ends_when_the_token_behind_it_expires(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            made = await rig.client.post(
                f"{rig.url}/logs/tickets", json={"machine_id": 7}, headers=bearer(rig.read_token(ttl_s=3))
            )
            async with rig.follow("/logs/machines/7", ticket=made.json()["ticket"]) as events:
                assert (await anext(events))["why"] == "expired"


async def test_while_the_control_plane_is_away_what_is_known_stays(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine, logging_revocation_interval=0.1) as rig:
            await revoke(rig, "a")
            rig.control.away = True
            await wait_until(lambda: rig.services.access.revoked.state == "kept")
            ready = (await rig.client.get(f"{rig.url}/readyz")).json()
            assert [await read(rig, "a"), await read(rig, "b"), ready["revoked"]] == [401, 200, "kept"]
            rig.control.away = False
            await wait_until(lambda: rig.services.access.revoked.state == "fresh")


async def test_until_the_first_list_is_here_nobody_reads(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.services.access.revoked._ids = None
            reply = await rig.client.get(f"{rig.url}/logs/machines/7", headers=bearer(rig.read_token()))
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


async def test_a_token_whose_id_is_none_of_ours_is_refused(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            assert [await read(rig, jti) for jti in ("", " ", "a b", "x" * 129, "a\nb")] == [401] * 5


# --- jobs are asked about together ---------------------------------------------------------------------------------


async def test_many_streams_ask_the_control_plane_no_more_often_than_one(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            subscriptions = []
            for job in range(150):
                rig.control.add_job(1000 + job, 1, "in_progress", [(1000 + job, 1)])
                entry = await rig.services.directory.job(1000 + job, 1)
                for _ in range(4):
                    subscriptions.append(rig.services.hub.subscribe(1, [1000 + job]))
                    rig.services.tails.watch.watch(entry, subscriptions[-1])
            before = rig.control.job_questions
            rig.control.add_job(1149, 1, "completed", [(1149, 1)])
            with trio.fail_after(20):
                await subscriptions[-1].wait()
            assert rig.control.job_questions - before <= 2


async def test_a_job_that_could_not_be_asked_about_goes_on_being_followed(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        control = ControlPlane()
        async with open_rig(tmp_path, engine, control=control) as rig:
            control.add_job(100, 1, "in_progress", [(7, 1)])
            async with rig.follow("/logs/jobs/100") as events:
                await rig.ingest([row(0)])
                await anext(events)
                control.away = True
                asked = control.job_questions
                await wait_until(lambda: control.job_questions > asked)
                await rig.ingest([row(1)])
                assert (await anext(events))["seq"] == 1
                control.away = False
                control.add_job(100, 1, "lost", [(7, 1)])
                assert (await anext(events))["why"] == "complete"


async def test_a_job_of_another_org_never_takes_the_place_of_the_one_that_is_followed(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            await rig.ingest([row(0, "of twelve")], org=12, machine=9)
            async with rig.follow("/logs/jobs/100") as events:
                asked = rig.control.job_questions
                rig.control.add_job(100, 12, "in_progress", [(7, 1), (9, 1)])
                await wait_until(lambda: rig.control.job_questions > asked + 1)
                await rig.ingest([row(0, "of one")])
                assert (await anext(events))["message"] == "of one"
