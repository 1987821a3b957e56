"""`nimbus report`: the documents' commands, against real services."""

from __future__ import annotations

import json
import re
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
    assert "OUTPUT" not in away.out


async def test_the_documented_report_of_logs_counts_and_shows_no_line(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path) as rig:
            rig.control.add_job(12345, 1, "completed", [(7, 1)])
            lines = ["one", "::group::secret title", "::error::secret words", "three"]
            rows = [row(seq, line) for seq, line in enumerate(lines)]
            await rig.ingest([*rows, row(4, "fine", "stderr"), row(5, "", "end")])
            flags = ("logs", "--logs-url", rig.url)
            page = await report(*flags, "--job-id", "12345", "--limit", "50", secret=SECRET)
            told = json.loads((await report(*flags, "--job-id", "12345", "--json", secret=SECRET)).out)
            org = json.loads((await report(*flags, "--org", "1", "--since", "1h", "--json", secret=SECRET)).out)
            unknown = await report(*flags, "--job-id", "9", secret=SECRET)
            nothing = await report(*flags, secret=SECRET)

    assert "stdout 4, stderr 1" in page.out
    assert "error 1" in page.out
    assert re.search(r"step 1 +4 lines, \d+ bytes, error 1", page.out)
    assert "secret" not in page.out
    assert told["by_level"]["error"] == 1
    assert told["by_stream"]["stderr"] == 1
    assert [step["step"] for step in told["by_step"]] == [0, 1]
    assert org["by_level"]["error"] == 1
    assert (unknown.status, nothing.status) == (2, 2)


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
