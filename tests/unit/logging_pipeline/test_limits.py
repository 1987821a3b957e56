"""What one org may ask for at once, and what one question may cost: beyond it, words that say what to narrow."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from nimbus.logging_pipeline.app import build_logging_pipeline
from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.reading.turns import Turns
from nimbus.logging_pipeline.rows import Place, ReadScope
from nimbus.logging_pipeline.store.bounds import ReadBounds
from nimbus.logging_pipeline.store.filters import Select
from nimbus.logging_pipeline.store.pages import plan_page, plan_page_before
from nimbus.model.errors import RateLimited, Refused, Unavailable
from tests.unit.logging_pipeline.rig import Rig, bearer, open_rig

ROWS = 200_000
AMPLE = ReadBounds(30.0, 10**9, 4096)


class Explained(msgspec.Struct):
    """A line of an explanation."""

    explain: str


async def fill(rig: Rig) -> None:
    """One machine's long output."""
    rig.control.add_job(100, 1, "completed", [(7, 1)])
    await rig.services.table.command(
        f"INSERT INTO {rig.services.table.name} (org_id, machine_id, fence, seq, stream, level, message, ts) "  # noqa: S608 - our name
        "SELECT 1, 7, 1, number, 'stdout', 'info', concat('line ', hex(cityHash64(number))), now64(3) "
        f"FROM numbers({ROWS})"
    )


async def ask(rig: Rig, bounds: ReadBounds, path: str, **params: str) -> tuple[int, str, str | None]:
    """Status, message and Retry-After of a pipeline with these bounds."""
    client = build_logging_pipeline(replace(rig.services, bounds=bounds)).test_client()
    reply = await client.get(path, query_string=params, headers=bearer(rig.read_token()))
    return reply.status_code, await reply.get_data(as_text=True), reply.headers.get("Retry-After")


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/logs/search", {"q": "ABCDE", "match": "substring"}),
        ("/logs/counts", {}),
        ("/logs/jobs/100/counts", {}),
        ("/logs/jobs/100/download", {}),
        ("/logs/jobs/100", {"q": "ABCDE", "match": "substring"}),
    ],
)
async def test_whoever_would_read_too_many_rows_is_told_to_narrow_it(
    tmp_path: Path, engine: Endpoint, path: str, params: dict[str, str]
) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await fill(rig)
            status, text, _ = await ask(rig, replace(AMPLE, rows=1000), path, **params)
            assert (status, "more than 1000 rows" in text, "narrow it" in text) == (400, True, True)
            assert (await ask(rig, AMPLE, path, **params))[0] == 200
            assert rig.services.table.health.standing.trouble is None


async def test_a_question_that_takes_too_long_or_too_much_memory_ends_with_words(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await fill(rig)
            wanted = {"q": "ABCDEF", "match": "substring"}
            status, text, again = await ask(rig, replace(AMPLE, seconds=0.001), "/logs/search", **wanted)
            assert (status, "longer than" in text, again is not None) == (503, True, True)
            heavy = Select("SELECT toString(uniqExact(cityHash64(number))) AS explain FROM numbers(3000000)", {})
            with pytest.raises(Refused, match="more than 16 MiB of memory: narrow it"):
                await rig.services.table.read(heavy, Explained, replace(AMPLE, memory_mib=16))
            assert rig.services.table.health.standing.trouble is None


async def test_a_page_of_a_long_job_is_no_matter_of_how_long_it_is(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await fill(rig)
            for params in ({"tail": "5"}, {"after": f"7.1.{ROWS - 6}"}, {"before": "7.1.5"}):
                status, text, _ = await ask(rig, replace(AMPLE, rows=1000), "/logs/jobs/100", **params)
                assert (status, text.count('"seq"')) == (200, 5)


async def test_a_deep_page_reads_only_the_granules_of_its_place(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await fill(rig)
            table, scope = rig.services.table, ReadScope(1, (6, 7, 8))
            for plan in (
                plan_page(table.name, scope, (Place(7, 1, ROWS - 100),), 100),
                plan_page(table.name, scope, (Place(7, 0, 5), Place(7, 1, ROWS - 100), Place(7, 3, 5)), 100),
                plan_page_before(table.name, scope, Place(7, 1, 100), 100),
            ):
                told = await table.read(Select(f"EXPLAIN indexes = 1 {plan.sql}", plan.select.parameters), Explained)
                found = re.search(
                    r"PrimaryKey.*?Granules: (\d+)/(\d+)", "\n".join(line.explain for line in told), re.DOTALL
                )
                assert found is not None
                assert int(found[1]) <= 2 < int(found[2])


async def test_an_orgs_reads_run_one_after_the_other_and_do_not_hold_up_anothers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    turns, order = Turns(10, places=2), list[str]()

    async def read(org: int, name: str) -> None:
        async with turns.take(org):
            order.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(read, 1, f"loud {number}")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read, 2, "quiet")
    assert order[1] == "quiet"
    assert trio.current_time() >= 5


async def test_more_reads_than_an_org_may_have_are_told_to_come_again(autojump_clock: trio.testing.MockClock) -> None:
    turns = Turns(2)

    async def read() -> None:
        async with turns.take(1):
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RateLimited, match="let one end"):
            async with turns.take(1):
                pass
        async with turns.queue(1):  # a part of a download waits instead
            assert trio.current_time() >= 2
    async with turns.take(1):
        pass


async def test_a_turn_that_does_not_come_in_time_is_no_turn(autojump_clock: trio.testing.MockClock) -> None:
    turns = Turns(3, wait_s=5)

    async def hold(*, task_status: trio.TaskStatus[None]) -> None:
        async with turns.take(1):
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        with pytest.raises(Unavailable, match="retry"):
            async with turns.take(1):
                pass
        nursery.cancel_scope.cancel()
    async with turns.take(1):
        pass
