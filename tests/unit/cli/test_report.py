"""`nimbus report`: the documents' commands, against real services."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from nimbus.cli.report import add_up, describe_jobs
from tests.unit.cli.test_jobs import Said, nimbus_cli
from tests.unit.control_plane.plane import ADMIN_SECRET, open_plane
from tests.unit.logging_pipeline.rig import SECRET, open_rig, row


async def report(*words: str, secret: str = ADMIN_SECRET) -> Said:
    def run() -> Said:
        return nimbus_cli("report", *words, NIMBUS_JWT_SECRET=secret)

    return await trio.to_thread.run_sync(run)


@pytest.mark.services
async def test_the_documented_report_of_jobs_adds_up_what_the_api_tells(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        for ending in ("done", "failed"):
            await plane.submit()
            grant = await plane.lease(agent)
            assert grant is not None
            await plane.renew(agent, grant)
            await plane.finish(agent, grant, ending)
        await plane.submit()
        flags = ("--base-url", plane.url, "--token", ADMIN_SECRET)
        page = await report("jobs", *flags)
        told = json.loads((await report("jobs", *flags, "--json")).out)
        away = await report("overview", *flags, "--logs-url", "http://127.0.0.1:9")

    assert "failure 1, success 1" in page.out.replace("success 1, failure 1", "failure 1, success 1")
    assert "jobs queued" in page.out
    assert (told["last"]["count"], told["hosts"], told["jobs"]["queued"]) == (3, 1, 1)
    assert told["last"]["took_s"]["most"] >= told["last"]["took_s"]["median"] >= 0
    assert away.status == 1
    assert "control plane     ready" in away.out
    assert "logging pipeline  the logging pipeline" in away.out
    assert "the last 3" in away.out


async def test_the_documented_report_of_logs_counts_and_shows_no_line(tmp_path: Path) -> None:
    with trio.fail_after(90):
        async with open_rig(tmp_path) as rig:
            rig.control.add_job(12345, 1, "completed", [(7, 1)])
            await rig.ingest([row(0, "one"), row(1, "secret words", "stderr"), row(2, "", "end")])
            flags = ("logs", "--logs-url", rig.url, "--job-id", "12345")
            page = await report(*flags, "--limit", "50", secret=SECRET)
            told = json.loads((await report(*flags, "--json", secret=SECRET)).out)
            first = json.loads((await report(*flags, "--json", "--limit", "1", secret=SECRET)).out)
            unknown = await report("logs", "--logs-url", rig.url, "--job-id", "9", secret=SECRET)

    assert "stdout 1, stderr 1" in page.out
    assert "secret words" not in page.out
    assert (told["lines"], told["bytes"], told["whole"]) == ({"stdout": 1, "stderr": 1, "end": 1}, 15, True)
    assert (first["lines"], first["whole"]) == ({"stdout": 1}, False)
    assert unknown.status == 2


def test_jobs_are_added_up_whatever_they_lack() -> None:
    nothing = add_up([])
    assert (nothing["count"], nothing["waited_s"]) == (0, None)
    job: dict[str, Any] = {
        "state": "lost", "conclusion": None, "source": "github", "queued_at": "2026-11-21T08:00:00+00:00",
        "started_at": "2026-11-21T07:59:59+00:00", "completed_at": None,
    }  # fmt: skip
    told = add_up([job])
    assert (told["ends"], told["waited_s"]["most"], told["took_s"]) == ({"lost": 1}, 0.0, None)
    page = describe_jobs({"machines": {}, "jobs": {}, "oldest_queued_s": None, "last": nothing})
    assert page == [("the last 0", "none has ended")]
