"""`nimbus logs`: what a terminal gets to see, and how the command speaks to the pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import trio

from nimbus.cli.logs import render_line
from tests.unit.logging_pipeline.rig import SECRET, open_rig, row


def test_a_rewritten_line_is_shown_as_it_was_at_its_end() -> None:
    assert render_line({"stream": "stdout", "message": "10%\r20%\r"}) == "20%\n"
    assert render_line({"stream": "stdout", "message": ""}) == "\n"


async def run_logs(*arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("NIMBUS_")} | environ
    argv = [sys.executable, "-m", "nimbus", "logs", *arguments]
    return await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False, env=env)


async def test_the_documented_command_prints_a_jobs_output(tmp_path: Path) -> None:
    with trio.fail_after(90):
        async with open_rig(tmp_path) as rig:
            rig.control.add_job(12345, 1, "completed", [(7, 1)])
            await rig.ingest([row(0, "one"), row(1, "two \x1b]0;x\x07", "stderr"), row(2, "the end", "end")])
            flags = ("--logs-url", rig.url, "--job-id", "12345")
            whole = await run_logs(*flags, "--limit", "50", NIMBUS_JWT_SECRET=SECRET)
            first = await run_logs(*flags, "--limit", "1", NIMBUS_JWT_SECRET=SECRET)
            by_secret = await run_logs(*flags, "--token", SECRET, NIMBUS_JWT_SECRET=SECRET)
            as_json = await run_logs(*flags, "--json", NIMBUS_JWT_SECRET=SECRET)
            followed = await run_logs(*flags, "--follow", NIMBUS_JWT_SECRET=SECRET)
            assert (whole.returncode, whole.stdout) == (0, b"one\ntwo \n")
            assert first.stdout == b"one\n"
            assert by_secret.stdout == b"one\ntwo \n"
            assert [json.loads(line)["seq"] for line in as_json.stdout.splitlines()] == [0, 1, 2]
            assert (followed.returncode, followed.stdout) == (0, b"one\ntwo \n")


async def test_following_prints_a_line_soon_after_it_was_stored_and_ends_with_the_job(tmp_path: Path) -> None:
    with trio.fail_after(90):
        async with open_rig(tmp_path) as rig:
            rig.control.add_job(5, 1, "in_progress", [(7, 1)])
            await rig.ingest([row(0, "first")])
            argv = [sys.executable, "-m", "nimbus.cli.logs", "--logs-url", rig.url, "--job-id", "5", "--follow"]
            env = os.environ | {"NIMBUS_JWT_SECRET": SECRET}
            process = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE, env=env)
            assert process.stdout is not None
            assert await process.stdout.receive_some(100) == b"first\n"
            stored_at = time.monotonic()
            await rig.ingest([row(1, "live")])
            assert await process.stdout.receive_some(100) == b"live\n"
            assert time.monotonic() - stored_at < 1.0
            rig.control.add_job(5, 1, "completed", [(7, 1)])
            await rig.ingest([row(2, "", "end")])
            assert await process.wait() == 0
            await process.stdout.aclose()


async def test_errors_name_the_next_command(tmp_path: Path) -> None:
    with trio.fail_after(60):
        nothing = await run_logs("--logs-url", "http://127.0.0.1:9", "--job-id", "1", NIMBUS_JWT_SECRET=SECRET)
        no_token = await run_logs("--job-id", "1")
        neither = await run_logs(NIMBUS_JWT_SECRET=SECRET)
        assert nothing.returncode == 1
        assert b"nimbus up" in nothing.stderr
        assert (no_token.returncode, neither.returncode) == (2, 2)
        assert b"NIMBUS_JWT_SECRET" in no_token.stderr
        assert b"nimbus jobs recent" in neither.stderr
