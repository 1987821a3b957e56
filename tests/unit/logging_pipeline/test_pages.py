"""Pages of output: in both directions, filtered, from the end, about a place; each row once, in order."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from tests.unit.logging_pipeline.rig import Rig, open_rig, row

BEGAN_S = int(time.time()) - 60


def dated(seq: int, message: str = "", stream: str = "stdout") -> dict[str, object]:
    """A row whose time follows from its number: one second a line."""
    return row(seq, message, stream) | {"ts_ms": 1000 * (BEGAN_S + seq)}


def moment(seq: int, hours_east: int = 0) -> str:
    """The time of such a row on a clock somewhere."""
    told = datetime.fromtimestamp(BEGAN_S + seq, timezone(timedelta(hours=hours_east)) if hours_east else UTC)
    return told.isoformat().replace("+00:00", "Z")


async def walk(rig: Rig, path: str, way: str, cursor: str | None, **params: str) -> list[list[int]]:
    """The numbers on each page until there is no more."""
    pages, more = [], True
    while more:
        page = (await rig.read(path, 1, **params, **{way: cursor or ""})).json()
        pages.append([each["seq"] for each in page["rows"]])
        cursor, more = page["next" if way == "after" else "prev"], page["more"]
    return pages


async def test_the_last_lines_come_first_and_then_the_pages_before_them(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            await rig.ingest([row(n) for n in range(10)])
            tail = (await rig.read("/logs/jobs/100", tail="3")).json()
            assert [each["seq"] for each in tail["rows"]] == [7, 8, 9]
            assert tail["more"] is True
            assert await walk(rig, "/logs/jobs/100", "before", tail["prev"], limit="4") == [[3, 4, 5, 6], [0, 1, 2]]
            await rig.ingest([row(10)])
            assert await walk(rig, "/logs/jobs/100", "after", tail["next"]) == [[10]]


async def test_going_back_crosses_machines_and_fences_in_their_order(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 3), (9, 1)])
            for machine, fence in ((7, 1), (7, 3), (9, 1)):
                await rig.ingest([row(n, f"{machine}/{fence}/{n}") for n in range(3)], machine=machine, fence=fence)
            there = await rig.messages("/logs/jobs/100")
            assert there == [f"{machine}/{n}" for machine in ("7/1", "7/3", "9/1") for n in range(3)]
            page = (await rig.read("/logs/jobs/100", tail="2")).json()
            end = page["next"]
            back = [each["message"] for each in page["rows"]]
            while page["more"]:
                page = (await rig.read("/logs/jobs/100", limit="2", before=page["prev"])).json()
                back = [each["message"] for each in page["rows"]] + back
            assert back == there
            # whoever goes on from the end of a tail is told nothing again, of any machine
            assert await rig.messages("/logs/jobs/100", after=end) == []


async def test_a_page_about_a_row_shows_what_stands_before_and_after_it(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1), (9, 1)])
            await rig.ingest([row(n) for n in range(20)])
            await rig.ingest([row(n, f"other {n}") for n in range(20)], machine=9)
            page = (await rig.read("/logs/jobs/100", around="9.1.1", limit="6")).json()
            assert [each["message"] for each in page["rows"]] == [
                "line 18", "line 19", "other 0", "other 1", "other 2", "other 3",
            ]  # fmt: skip
            assert (await rig.messages("/logs/jobs/100", after=page["next"], limit="2")) == ["other 4", "other 5"]


async def test_rows_that_are_stored_many_times_take_no_rows_place(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            await rig.ingest([row(n) for n in range(10)])
            name = rig.services.table.name
            for _ in range(5):
                await rig.services.table.command(f"INSERT INTO {name} SELECT * FROM {name} WHERE seq < 6 LIMIT 60")  # noqa: S608 - our name
            assert await walk(rig, "/logs/jobs/100", "after", None, limit="4") == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
            assert await walk(rig, "/logs/jobs/100", "before", "7.1.6", limit="3") == [[3, 4, 5], [0, 1, 2], []]


@pytest.mark.parametrize(
    ("asked", "seqs"),
    [
        ({"stream": "stderr"}, [1]),
        ({"stream": "stderr,agent"}, [1, 2]),
        ({"level": "warning"}, [2]),
        ({"level": "error"}, [4]),
        ({"step": "1"}, [3, 4, 5]),
        ({"q": "e", "match": "substring", "step": "0"}, [0, 1, 2]),
        ({"since": str(1000 * (BEGAN_S + 3))}, [3, 4, 5]),
        ({"until": moment(2)}, [0, 1]),
        ({"since": moment(1), "until": moment(3, 2)}, [1, 2]),
        ({"q": "LINE"}, [0, 1, 4, 5]),
        ({"q": "ine 5", "match": "substring"}, [5]),
        ({"q": "nothing of the kind"}, []),
    ],
)
async def test_a_page_holds_only_what_was_asked_for(
    tmp_path: Path, engine: Endpoint, asked: dict[str, str], seqs: list[int]
) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            await rig.ingest(
                [dated(0), dated(1, "", "stderr"), dated(2, "three dropped", "agent"), dated(3, "::group::Test"),
                 dated(4, "::error file=a.py,line=3::it broke"), dated(5)]
            )  # fmt: skip
            for way in ({}, {"tail": "100"}):
                page = (await rig.read("/logs/jobs/100", 1, **asked, **way)).json()
                assert [each["seq"] for each in page["rows"]] == seqs


@pytest.mark.parametrize(
    "asked",
    [
        {"limit": "0"}, {"limit": "10001"}, {"limit": "ten"}, {"tail": "0"}, {"tail": "-1"}, {"before": "x"},
        {"after": "7.1"}, {"before": "7.1.1_7.2.1"}, {"around": "7"}, {"tail": "3", "after": "7.1.1"}, {"step": "-1"},
        {"step": "65536"}, {"level": "fatal"}, {"level": "error,"}, {"stream": "' OR 1"}, {"since": "yesterday"},
        {"since": "2026-09-21T14:13:22"}, {"since": "20", "until": "10"}, {"until": "9" * 40}, {"q": ""},
        {"q": "x" * 257}, {"q": "a\nb"}, {"q": "\x00"}, {"q": "%"}, {"q": "x", "match": "regex"}, {"after": "1" * 5000},
        {"q": " ".join("abcdefghijklmnopq")},
    ],
)  # fmt: skip
async def test_a_page_that_cannot_be_is_refused_with_words(
    tmp_path: Path, engine: Endpoint, asked: dict[str, str]
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            reply = await rig.read("/logs/jobs/100", 1, **asked)
            assert reply.status_code == 400
            assert reply.json()["error"] == "refused"
            assert len(reply.json()["message"]) > 20
