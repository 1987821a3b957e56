"""Counts and annotations: what reports say of output, each line once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from tests.unit.logging_pipeline.rig import Rig, open_rig

NOW_MS = int(time.time() * 1000)


async def put(rig: Rig, org: int, machine: int, rows: list[tuple[str, str, int, str]], fence: int = 1) -> None:
    """Rows as ingest leaves them: (stream, level, step, message)."""
    told = ", ".join(
        f"({org:d}, {machine:d}, {fence:d}, {seq}, '{stream}', '{level}', {step:d}, '{message}', "
        f"fromUnixTimestamp64Milli({NOW_MS + seq}, 'UTC'))"
        for seq, (stream, level, step, message) in enumerate(rows)
    )
    name = rig.services.table.name
    await rig.services.table.command(
        f"INSERT INTO {name} (org_id, machine_id, fence, seq, stream, level, step, message, ts) VALUES {told}"  # noqa: S608 - ours
    )


async def link(rig: Rig, org: int, repo: int, job: int, machine: int) -> None:
    await rig.services.table.command(
        f"INSERT INTO {rig.services.table.name}_links (org_id, repo_id, job_id, attempt, machine_id, fence) "  # noqa: S608 - numbers
        f"VALUES ({org:d}, {repo:d}, {job:d}, 1, {machine:d}, 1)"
    )


async def ask(rig: Rig, path: str, org: int | None = 1, **params: str) -> dict[str, Any]:
    reply = await rig.read(path, org, **params)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert isinstance(told, dict)
    return told


LINES = [
    ("stdout", "info", 0, "four"),
    ("stdout", "info", 1, "group"),
    ("stderr", "error", 1, "bad"),
    ("agent", "warning", 1, "note"),
    ("end", "info", 1, ""),
]


async def test_a_jobs_lines_are_counted_by_level_stream_and_step(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            await put(rig, 1, 7, LINES)
            told = await ask(rig, "/logs/jobs/100/counts")
            assert (told["lines"], told["bytes"]) == (4, 16)
            assert (told["first_ms"], told["last_ms"]) == (NOW_MS, NOW_MS + 3)
            assert told["by_level"] == {"info": 2, "error": 1, "warning": 1}
            assert told["by_stream"] == {"stdout": 2, "stderr": 1, "agent": 1}
            assert [(each["step"], each["lines"], each["bytes"]) for each in told["by_step"]] == [(0, 1, 4), (1, 3, 12)]
            assert (await ask(rig, "/logs/jobs/100/counts", level="error"))["lines"] == 1
            rig.control.add_job(101, 1, "queued", [])
            empty = await ask(rig, "/logs/jobs/101/counts")
            assert (empty["lines"], empty["bytes"], empty["first_ms"], empty["by_step"]) == (0, 0, None, [])


async def test_lines_that_are_stored_several_times_count_once(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            await link(rig, 1, 55, 100, 7)
            for _ in range(3):
                await put(rig, 1, 7, LINES)
            assert (await ask(rig, "/logs/jobs/100/counts"))["lines"] == 4
            assert (await ask(rig, "/logs/counts"))["lines"] == 4


async def test_an_orgs_lines_are_counted_by_job_the_loudest_first(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            for machine, repo, job, lines in ((7, 55, 100, 2), (8, 55, 101, 5), (9, 56, 102, 3)):
                await link(rig, 1, repo, job, machine)
                await put(rig, 1, machine, [("stdout", "info", 0, "line")] * lines)
            await put(rig, 1, 10, [("stdout", "info", 0, "of no job yet")])
            await put(rig, 2, 11, [("stdout", "info", 0, "of another org")] * 50)
            told = await ask(rig, "/logs/counts")
            assert told["lines"] == 11
            assert [(each["job_id"], each["repo_id"], each["lines"]) for each in told["jobs"]] == [
                (101, 55, 5), (102, 56, 3), (100, 55, 2),
            ]  # fmt: skip
            assert [each["job_id"] for each in (await ask(rig, "/logs/counts", limit="1"))["jobs"]] == [101]
            of_repo = await ask(rig, "/logs/counts", repo="55")
            assert (of_repo["lines"], [each["job_id"] for each in of_repo["jobs"]]) == (7, [101, 100])
            assert (await ask(rig, "/logs/counts", until=str(NOW_MS)))["lines"] == 0
            assert (await ask(rig, "/logs/counts", since=str(NOW_MS + 1), until=str(NOW_MS + 2)))["lines"] == 3


async def test_annotations_tell_the_file_and_line_that_they_are_about(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            await put(
                rig, 1, 7,
                [
                    ("stdout", "info", 0, "fine"),
                    ("stdout", "error", 1, "::error file=a/b.py,line=3,endLine=4,col=5,title=Broken::it broke%0Atwice"),
                    ("agent", "warning", 1, "::warning::of the agent, which annotates nothing"),
                    ("stdout", "error", 1, "an error that is no command"),
                    ("stderr", "notice", 2, "##[notice]look"),
                ],
            )  # fmt: skip
            told = (await ask(rig, "/logs/jobs/100/annotations"))["annotations"]
            assert [(each["level"], each["seq"], each["step"]) for each in told][:1] == [("error", 1, 1)]
            assert {name: told[0][name] for name in ("file", "line", "end_line", "col", "title", "message")} == {
                "file": "a/b.py", "line": 3, "end_line": 4, "col": 5, "title": "Broken", "message": "it broke\ntwice",
            }  # fmt: skip
            assert 2 not in [each["seq"] for each in told]
            page = await ask(rig, "/logs/jobs/100/annotations", limit="1")
            assert (page["more"], len(page["annotations"])) == (True, 1)
            rest = await ask(rig, "/logs/jobs/100/annotations", after=page["next"])
            assert all(each["seq"] > 1 for each in rest["annotations"])
            about = await rig.messages("/logs/jobs/100", around=told[0]["cursor"], limit="2")
            assert about[0] == "fine"
            assert (await ask(rig, "/logs/jobs/100/annotations", level="warning"))["annotations"] == []
