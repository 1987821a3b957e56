"""`nimbus logs`: what a terminal gets to see, and how the command speaks to the pipeline."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from nimbus.cli.logrequest import Wanted, check_together, plan_request
from nimbus.cli.logs import logs
from nimbus.cli.logview import Look
from nimbus.model.errors import Refused
from tests.unit.logging_pipeline.rig import SECRET, Rig, open_rig, row


async def run_logs(*arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """`nimbus logs` with its output in pipes."""
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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--job-id 1 --machine-id 2", "either --job-id or --machine-id"),
        ("--job-id 1 --org 2 --search x", "--repo and --org are for a search in all jobs"),
        ("--job-id 1 --substring", "--substring belongs to --search"),
        ("--job-id 1 --follow --limit 3", "--limit and --follow exclude each other"),
        ("--job-id 1 --follow --search x", "--search and --follow exclude each other"),
        ("--job-id 1 --follow --download f", "exclude each other"),
        ("--job-id 1 --tail 3 --limit 3", "--tail and --limit exclude each other"),
        ("--job-id 1 --gzip", "--gzip belongs to --download"),
        ("--job-id 1 --download f --gzip --json", "--gzip and --json exclude each other"),
        ("--org 1", "nimbus jobs recent"),
        ("--search x", "nimbus orgs list"),
        ("--machine-id 1 --annotations", "--annotations needs --job-id"),
        ("--job-id 1 --since yesterday", "write it like 2h"),
        ("--job-id 1 --raw --json", "--raw and --json exclude each other"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_words(words: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        plan(words)


def plan(words: str) -> Wanted:
    """What an invocation asks for."""
    context = logs.make_context("logs", words.split())
    check_together(context.params)
    return plan_request(context.params, datetime(2026, 11, 21, 8, tzinfo=UTC))


def test_options_become_the_path_and_the_query_of_one_request() -> None:
    assert plan("--job-id 12").path == "/logs/jobs/12"
    assert plan("--machine-id 7 --limit 3").limit == 3
    asked = plan(
        "--job-id 12 --level error --level warning --stream stderr --step 2 --since 2h --search disk --substring"
    )
    assert asked.query == {
        "level": "error,warning", "stream": "stderr", "step": "2", "since": "2026-11-21T06:00:00Z", "q": "disk",
        "match": "substring",
    }  # fmt: skip
    search = plan("--org 3 --repo 4 --search x")
    assert (search.path, search.query, search.limit) == (
        "/logs/search", {"org": "3", "repo": "4", "q": "x", "match": "token"}, 100,
    )  # fmt: skip


def test_colours_are_for_terminals_unless_asked_for() -> None:
    assert plan("--job-id 1").look == Look(pretty=False, colour=False)
    assert plan("--job-id 1 --color -t").look == Look(pretty=True, colour=True, timestamps=True)


OUTPUT = [
    "\x1b[32mchecking out\x1b[0m",
    "::group::Build",
    "compiling 10%\rcompiling 100%",
    "::error file=src/a.c,line=3,col=5,title=cc::no semicolon",
    "::endgroup::",
    "::group::Test",
    "ok 12 tests, disk 91% full",
]


async def store_output(rig: Rig) -> None:
    rig.control.add_job(12, 1, "completed", [(7, 1)])
    rows = [row(seq, message) for seq, message in enumerate(OUTPUT)]
    await rig.ingest([*rows, row(len(rows), "slow network", "stderr"), row(len(rows) + 1, "", "end")])


def check_files(file: Path) -> None:
    """A download without colours, the same compressed and with them, and nothing unfinished beside them."""
    assert file.read_text().splitlines()[:3] == ["checking out", "::group::Build", "compiling 100%"]
    packed = gzip.decompress(file.with_name(f"{file.name}.gz").read_bytes()).decode()
    assert packed.splitlines()[:2] == [OUTPUT[0], OUTPUT[1]]
    assert not list(file.parent.glob("*.part"))


async def test_output_is_filtered_searched_annotated_and_downloaded(tmp_path: Path) -> None:
    with trio.fail_after(180):
        async with open_rig(tmp_path) as rig:
            await store_output(rig)

            async def said(words: str) -> str:
                flags = ["--logs-url", rig.url, *words.split()]
                told = await run_logs(*flags, NIMBUS_JWT_SECRET=SECRET)
                assert told.returncode == 0, told.stderr.decode()
                return told.stdout.decode()

            tail = await said("--job-id 12 --tail 3")
            errors = await said("--job-id 12 --level error")
            stderr = await said("--job-id 12 --stream stderr")
            step = await said("--job-id 12 --step 2 --stream stdout")
            found = await said("--job-id 12 --search DISK")
            within = await said("--org 1 --search etwor --substring")
            annotations = await said("--job-id 12 --annotations")
            file = tmp_path / "job.log"
            await said(f"--job-id 12 --download {file} --no-color")
            await said(f"--job-id 12 --download {file}.gz --gzip")
            raw = await said("--job-id 12 --raw")
            pretty = await said("--job-id 12 --color --limit 3")
    assert tail == "::group::Test\nok 12 tests, disk 91% full\nslow network\n"
    assert errors == "::error file=src/a.c,line=3,col=5,title=cc::no semicolon\n"
    assert stderr == "slow network\n"
    assert step == "::group::Test\nok 12 tests, disk 91% full\n"
    assert found == "ok 12 tests, disk 91% full\n"
    assert within.endswith(": slow network\n")
    assert annotations == "error src/a.c:3:5 cc: no semicolon\n"
    check_files(file)
    assert raw.startswith("\x1b[32mchecking out\x1b[0m\n")
    assert pretty == "\x1b[32mchecking out\x1b[0m\n\x1b[1m▸ Build\x1b[0m\n  compiling 100%\n"


async def test_a_follower_may_begin_with_the_last_lines_and_see_only_some(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path) as rig:
            await store_output(rig)
            flags = ("--logs-url", rig.url, "--job-id", "12", "--follow")
            tail = await run_logs(*flags, "--tail", "2", NIMBUS_JWT_SECRET=SECRET)
            errors = await run_logs(*flags, "--level", "error", NIMBUS_JWT_SECRET=SECRET)
    assert tail.stdout.decode() == "ok 12 tests, disk 91% full\nslow network\n"
    assert errors.stdout.decode() == f"{OUTPUT[3]}\n"


async def test_the_schema_of_a_store_is_checked_and_brought_up_to_date(tmp_path: Path) -> None:
    async def migrate(*words: str) -> subprocess.CompletedProcess[bytes]:
        return await run_logs("migrate", *words, NIMBUS_STATE_DIR=str(tmp_path))

    with trio.fail_after(120):
        missing, applied, nothing = await migrate("--check"), await migrate(), await migrate("--check")
    assert (missing.returncode, applied.returncode, nothing.returncode) == (1, 0, 0)
    assert missing.stdout.replace(b"missing", b"applied") == applied.stdout
    assert b"0001_ci_logs.sql" in applied.stdout
    assert nothing.stdout == b"nothing to do\n"


async def test_raw_output_never_reaches_a_terminal() -> None:
    reader, terminal = os.openpty()
    env = os.environ | {"NIMBUS_JWT_SECRET": SECRET}
    argv = [sys.executable, "-m", "nimbus", "logs", "--job-id", "1", "--raw"]
    with trio.fail_after(60):
        said = await trio.run_process(argv, stdout=terminal, capture_stderr=True, check=False, env=env)
    os.close(terminal)
    os.close(reader)
    assert said.returncode == 2
    assert b"pipe it into a program" in said.stderr
