"""Which job a machine ran: learned from the control plane behind the rows' back, stored once, believed for one org."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.ingest.links import NO_LINK, Links, LinkTerms
from nimbus.logging_pipeline.plane import Plane
from nimbus.logging_pipeline.rows import Chunk, JobLink, Row, Source
from nimbus.logging_pipeline.store.links import find_links, find_unlinked, store_links
from nimbus.runtime.http import open_http
from nimbus.wire.tokens import hmac_key
from tests.unit.logging_pipeline.rig import SECRET, Rig, open_rig, row, wait_until

OFTEN = LinkTerms(first_s=0.05, longest_s=0.2)


@asynccontextmanager
async def open_links(rig: Rig, terms: LinkTerms = OFTEN) -> AsyncIterator[Links]:
    """What a service just started knows of links, beside the rig's own."""
    async with open_http() as client, trio.open_nursery() as nursery:
        links = Links(Plane(client, rig.control_url, hmac_key(SECRET)), rig.services.table, terms)
        nursery.start_soon(links.run)
        yield links
        nursery.cancel_scope.cancel()


async def stored(rig: Rig) -> list[dict[str, Any]]:
    name = rig.services.table.name
    return await rig.services.table.rows_of(f"SELECT * EXCEPT linked_at FROM {name}_links ORDER BY machine_id, fence")  # noqa: S608 - ours


async def test_a_job_that_begins_after_its_runner_is_learned_and_stored_once(tmp_path: Path, engine: Endpoint) -> None:
    source = Source(1, 7, 2)
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig, open_links(rig) as links:
            rig.control.add_link(7, 2, org=1, job=None)
            assert links.link_of(source) == NO_LINK
            await wait_until(lambda: rig.control.link_questions.count((7, 2)) >= 2)
            assert links.link_of(source) == NO_LINK
            rig.control.add_link(7, 2, org=1, job=12, repo=3)
            await wait_until(lambda: links.link_of(source) == JobLink(3, 12, 2))
            asked = rig.control.link_questions.count((7, 2))
            assert links.link_of(source) == JobLink(3, 12, 2)
            assert rig.control.link_questions.count((7, 2)) == asked
            ids = {"org_id": 1, "repo_id": 3, "job_id": 12, "machine_id": 7, "fence": 2}
            assert await stored(rig) == [{**ids, "attempt": 2}]


async def test_a_restarted_service_reads_its_links_from_the_table(tmp_path: Path, engine: Endpoint) -> None:
    known = {Source(1, machine, 1): JobLink(3, machine, 1) for machine in range(1, 1200)}
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await store_links(rig.services.table, known)
            rig.control.away = True
            async with open_links(rig) as links:
                assert {links.link_of(source) for source in known} == {NO_LINK}
                await wait_until(lambda: all(links.link_of(source) == link for source, link in known.items()))
            assert rig.control.link_questions == []


async def test_a_machine_that_never_prints_again_is_linked_after_a_restart(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            now_ms = time.time_ns() // 1_000_000
            told = Source(1, 7, 1), Source(2, 8, 3), Source(1, 9, 1)
            lines = [Chunk(source, "agent-1", [Row(0, now_ms, "stdout", "info", "")]) for source in told]
            await rig.services.table.insert(lines)  # by a service that has ended
            await store_links(rig.services.table, {told[2]: JobLink(3, 14, 1)})
            assert sorted(await find_unlinked(rig.services.table, 60, 10), key=str) == sorted(told[:2], key=str)
            rig.control.add_link(7, 1, org=1, job=12, repo=3)
            async with open_links(rig):
                while len(await stored(rig)) < 2:  # noqa: ASYNC110 - the table tells nobody
                    await trio.sleep(0.01)
            assert [entry["job_id"] for entry in await stored(rig)] == [12, 14]


async def test_links_that_come_again_stay_one_row_each(tmp_path: Path, engine: Endpoint) -> None:
    links = {Source(1, 7, 1): JobLink(3, 12, 1), Source(1, 8, 1): JobLink(0, 13, 0)}
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            table = rig.services.table
            await store_links(table, links)
            await store_links(table, dict(reversed(links.items())))
            await store_links(table, {Source(1, 7, 1): JobLink(3, 12, 1)})  # another replica, another block
            await table.command(f"OPTIMIZE TABLE {table.name}_links FINAL")
            assert len(await stored(rig)) == 2
            assert await find_links(table, list(links)) == links
            assert await find_links(table, [Source(2, 7, 1), Source(1, 7, 2)]) == {}


async def test_a_link_of_another_org_is_never_taken(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig, open_links(rig) as links:
            rig.control.add_link(7, 1, org=2, job=12, repo=3)
            links.link_of(Source(1, 7, 1))
            await wait_until(lambda: len(rig.control.link_questions) >= 3)
            assert links.link_of(Source(1, 7, 1)) == NO_LINK
            assert await stored(rig) == []


async def test_a_control_plane_that_is_away_is_asked_later_and_holds_no_row_up(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig, open_links(rig) as links:
            rig.control.add_link(7, 1, org=1, job=12, repo=3)
            rig.control.away = True
            links.link_of(Source(1, 7, 1))
            await wait_until(lambda: len(rig.control.link_questions) >= 2)
            rig.control.away = False
            await wait_until(lambda: links.link_of(Source(1, 7, 1)) == JobLink(3, 12, 2))


async def test_an_answer_that_is_none_is_asked_for_again(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig, open_links(rig) as links:
            rig.control.links[7, 1] = {"org_id": 1, "job_id": "12; DROP TABLE x", "repo_id": 3, "run_attempt": 1}
            links.link_of(Source(1, 7, 1))
            await wait_until(lambda: len(rig.control.link_questions) >= 2)
            rig.control.add_link(7, 1, org=1, job=12, repo=3)
            await wait_until(lambda: links.link_of(Source(1, 7, 1)) == JobLink(3, 12, 2))


async def test_a_machine_that_fell_silent_is_not_asked_about_any_more(tmp_path: Path, engine: Endpoint) -> None:
    terms = LinkTerms(first_s=0.02, longest_s=0.02, silent_s=0.3)
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig, open_links(rig, terms) as links:
            links.link_of(Source(1, 7, 1))
            await wait_until(lambda: (7, 1) in rig.control.link_questions)
            await trio.sleep(2 * terms.silent_s)  # silence is what is tested
            asked = len(rig.control.link_questions)
            await trio.sleep(terms.silent_s)
            assert len(rig.control.link_questions) == asked


async def test_rows_bear_their_job_as_soon_as_it_is_known(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_link(7, 1, org=1, job=12, repo=3)
            claimed = row(0) | {"job_id": 99, "repo_id": 99, "org_id": 99}
            assert (await rig.ingest([claimed])).json()["acked_seq"] == 0
            table = rig.services.table
            while not await stored(rig):  # noqa: ASYNC110 - the table tells nobody
                await trio.sleep(0.01)
            await rig.ingest([row(1)])
            told = await table.rows_of(f"SELECT job_id, repo_id, attempt FROM {table.name} WHERE seq = 1")  # noqa: S608 - ours
            assert [(int(each["job_id"]), int(each["repo_id"]), each["attempt"]) for each in told] == [(12, 3, 2)]
            mentions = await table.rows_of(f"SELECT count() AS n FROM {table.name} WHERE job_id = 99 OR org_id != 1")  # noqa: S608 - ours
            assert int(mentions[0]["n"]) == 0
