"""Search: whole words and parts of words, newest first, in a job, a repo or an org; nothing of a caller is SQL."""

from __future__ import annotations

import re
import time
from pathlib import Path

import msgspec
import pytest
import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.store.filters import Match, Phrase, RowFilter, Select, escape_like
from nimbus.logging_pipeline.store.search import SearchScope, plan_search
from tests.unit.logging_pipeline.rig import Rig, bearer, open_rig, row

BEGAN_S = int(time.time()) - 600
HOSTILE = [
    "' UNION SELECT 1 --", "{x:String}", "{q:Identifier}", "%", "_", "100%", "a_b", "\\", "\\%", "\\N", "''", '"', "`",
    "format=JSON;DROP TABLE ci_logs", "); DROP TABLE x", "(a+)+$", "[a-z]", "\t", "\u00e4", "%%%%", "\\\\", "a\\'b",
    "--", "/*", "*/", "${jndi}", "\u2028",
]  # fmt: skip


class Explained(msgspec.Struct):
    """A line of an explanation."""

    explain: str


def said(seq: int, message: str, second: int = 0) -> dict[str, object]:
    return row(seq, message) | {"ts_ms": 1000 * (BEGAN_S + second)}


async def link(rig: Rig, org: int, repo: int, job: int, machine: int, fence: int = 1) -> None:
    """What ingest writes once the control plane tells which job a machine runs."""
    await rig.services.table.command(
        f"INSERT INTO {rig.services.table.name}_links (org_id, repo_id, job_id, attempt, machine_id, fence) "  # noqa: S608 - numbers
        f"VALUES ({org:d}, {repo:d}, {job:d}, 1, {machine:d}, {fence:d})"
    )


async def find(rig: Rig, org: int | None = 1, **asked: str) -> list[tuple[int, int]]:
    """Machine and number of each hit."""
    reply = await rig.read("/logs/search", org, **asked)
    assert reply.status_code == 200, reply.text
    return [(hit["machine_id"], hit["seq"]) for hit in reply.json()["hits"]]


async def test_hits_come_from_the_newest_machine_first_and_of_each_the_last_lines_first(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest(
                [said(0, "Connection refused", 1), said(1, "refused again", 5), said(2, "fine", 6)], machine=7
            )
            await rig.ingest([said(0, "REFUSED.", 3), said(1, "unrefused", 4)], machine=9)
            assert await find(rig, q="refused") == [(9, 0), (7, 1), (7, 0)]
            assert await find(rig, q="refused connection") == [(7, 0)]
            assert await find(rig, q="refuse") == []
            assert await find(rig, q="refuse", match="substring") == [(9, 1), (9, 0), (7, 1), (7, 0)]
            assert await find(rig, q="refused", machine="9") == [(9, 0)]
            assert await find(rig, q="refused", since=str(1000 * (BEGAN_S + 3))) == [(9, 0), (7, 1)]


async def test_every_hit_is_told_once_over_all_pages_however_often_it_is_stored(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rows = [said(n, f"needle {n}", n // 3) for n in range(30)]  # three in each second
            await rig.ingest(rows)
            table = rig.services.table
            for _ in range(2):
                await table.command(f"INSERT INTO {table.name} SELECT * FROM {table.name} LIMIT 30")  # noqa: S608 - our name
            told: list[int] = []
            cursor: dict[str, str] = {}
            more = True
            while more:
                page = (await rig.read("/logs/search", q="needle", limit="7", org=1, **cursor)).json()
                told += [hit["seq"] for hit in page["hits"]]
                cursor, more = {"after": page["next"]}, page["more"]
            assert told == list(reversed(range(30)))


async def test_a_hit_tells_its_job_and_leads_to_the_lines_about_it(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            await link(rig, 1, 55, 100, 7)
            await rig.ingest(
                [said(n, f"line {n}") for n in range(9)] + [said(9, "x" * 5000 + " needle"), said(10, "end")]
            )
            await rig.ingest([said(0, "needle of a machine without a job", 1)], machine=8)
            hits = (await rig.read("/logs/search", q="needle")).json()["hits"]
            assert [(hit["job_id"], hit["repo_id"], hit["cut"]) for hit in hits] == [
                (None, None, False),
                (100, 55, True),
            ]
            about = await rig.messages("/logs/jobs/100", around=hits[1]["cursor"], limit="4")
            assert [message[-8:] for message in about] == ["line 7", "line 8", "x needle", "end"]


async def test_a_repo_and_a_job_are_searched_alone(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            for machine, repo, job in ((7, 55, 100), (8, 55, 101), (9, 56, 102)):
                await link(rig, 1, repo, job, machine)
                await rig.ingest([said(0, "needle", machine)], machine=machine)
            await rig.ingest([said(0, "needle of another fence", 1)], machine=9, fence=2)
            assert await find(rig, q="needle", repo="55") == [(8, 0), (7, 0)]
            assert await find(rig, q="needle", repo="57") == []
            assert await find(rig, q="needle", job="100") == [(7, 0)]
            assert await find(rig, q="ee", match="substring", job="100") == [(7, 0)]  # short ones: within a job
            refused = await rig.read("/logs/search", q="ee", match="substring", repo="55")
            assert (refused.status_code, "4 bytes" in refused.text) == (400, True)
            assert (await rig.read("/logs/search", q="needle", job="100", repo="55")).status_code == 400


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_text_means_only_itself(tmp_path: Path, engine: Endpoint, text: str) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            await rig.ingest([row(0, f"<{text}>"), row(1, "something harmless"), row(2, "axb 100 0")])
            reply = await rig.read("/logs/jobs/100", q=text, match="substring")
            assert [each["seq"] for each in reply.json()["rows"]] == [0], reply.text
            wide = f"<{text}>".ljust(4)
            found = (await rig.read("/logs/search", q=wide, match="substring")).json()
            assert [hit["seq"] for hit in found["hits"]] == ([0] if wide.strip() == wide else [])
            for level in ("/logs/jobs/100", "/logs/search"):
                assert (await rig.read(level, q="x", level=text)).status_code == 400
                assert (await rig.read(level, q="x", stream=text)).status_code == 400
            for name in ("job", "repo", "machine", "org", "limit", "after"):
                asked = await rig.client.get(
                    f"{rig.url}/logs/search", params={"q": "x", name: text}, headers=bearer(rig.read_token())
                )
                assert asked.status_code == 400
            word = await rig.read("/logs/search", q=text)
            assert word.status_code in (200, 400)
            assert {hit["seq"] for hit in word.json().get("hits", [])} <= {0, 2}


async def test_a_cursor_of_another_search_is_forbidden_and_none_of_ours_is_refused(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest([said(n, "needle", n) for n in range(5)])
            cursor = (await rig.read("/logs/search", q="needle", limit="2")).json()["next"]
            assert await find(rig, q="needle", after=cursor) == [(7, 2), (7, 1), (7, 0)]
            assert (await rig.read("/logs/search", q="needle", after=cursor, repo="55")).status_code == 403
            assert (await rig.read("/logs/search", org=2, q="needle", after=cursor)).status_code == 403
            for wrong in (
                "x",
                "7.1.1",
                f"{cursor}.1",
                cursor.replace(".", "_"),
                "0" * 16 + "." + ".".join(["9" * 19] * 3),
            ):
                assert (await rig.read("/logs/search", q="needle", after=wrong)).status_code == 400


async def test_a_search_for_a_word_reads_only_the_granules_that_may_hold_it(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            table = rig.services.table
            await table.command(
                f"INSERT INTO {table.name} (org_id, machine_id, fence, seq, stream, level, message, ts) "  # noqa: S608 - our name
                "SELECT 1, 7, 1, number, 'stdout', 'info', concat('line ', lower(hex(cityHash64(number)))), now64(3) "
                "FROM numbers(100000)"
            )
            wanted = RowFilter(phrase=Phrase("absent0word", Match.TOKEN))
            plan = plan_search(table.name, SearchScope(1), wanted, None, 10)
            told = await table.read(Select(f"EXPLAIN indexes = 1 {plan.sql}", plan.parameters), Explained)
            text = "\n".join(line.explain for line in told)
            assert "Name: words" in text
            assert re.search(r"Name: words.*?Granules: 0/\d+", text, re.DOTALL), text


def test_what_like_takes_for_a_wildcard_is_escaped() -> None:
    assert escape_like("50%_\\") == "50\\%\\_\\\\"


def test_the_words_of_a_phrase_are_in_small_letters_and_told_once() -> None:
    assert Phrase("Foo.bar foo_BAR É42 --").words == ("foo", "bar", "É42")
