"""`nimbus logs`: what a terminal gets to see, and how the command speaks to the pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nimbus.cli.logs import render_line
from nimbus.cli.screen import clean_line
from tests.unit.logging_pipeline.rig import SECRET, open_rig, row


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("plain", "plain"),
        ("a\tb", "a\tb"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m\x1b[0m"),
        ("\x1b[38;2;1;2;3mx", "\x1b[38;2;1;2;3mx\x1b[0m"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]52;c;aGk=\x1b\\after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP$q\x1b\\after", "after"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1b[?1049h\x1b[6n", ""),
        ("\x1b[>4;2m\x1b[?1m", ""),
        ("\x1bc\x1b(0reset", "reset"),
        ("\x9b31mc1\x9d0;t\x07", "\x1b[31mc1\x1b[0m"),
        ("bell\x07back\x08", "bellback"),
        ("admin\u202egnp.exe", "admingnp.exe"),
        ("cut\x1b", "cut"),
        ("cut\x1b[3", "cut"),
        ("cut\x1b]0;never ended", "cut"),
    ],
)
def test_a_line_keeps_its_colours_and_loses_what_drives_a_terminal(hostile: str, shown: str) -> None:
    assert clean_line(hostile) == shown


@given(st.text(alphabet=st.sampled_from("\x1b\x07\x9b\x9d\x90\\[]P0;3m?hA\x00\r\u202e")))
def test_no_text_leaves_more_than_colour_sequences(text: str) -> None:
    shown = clean_line(text)
    for start in (index for index, letter in enumerate(shown) if letter == "\x1b"):
        rest = shown[start + 1 :]
        assert rest.startswith("[")
        assert set(rest[1 : rest.index("m")]) <= set("0123456789;:")
    assert not {"\x07", "\x9b", "\x9d", "\x90", "\x00", "\r", "\u202e"} & set(shown)


def test_a_rewritten_line_shows_each_of_its_versions() -> None:
    assert render_line({"stream": "stdout", "message": "10%\r20%\r"}) == "10%\n20%\n"
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
