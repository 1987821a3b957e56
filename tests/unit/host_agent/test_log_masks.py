"""Secrets between the guest and the disk: never stored, never acknowledged too early, known to the next agent."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import trio

from nimbus.host_agent.logs import LogTarget, open_log_shipping
from nimbus.host_agent.output.masking import MASKS_MAX
from tests.unit.host_agent.logpipeline import open_pipeline, until


def stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.seg")))


async def test_secrets_of_both_kinds_are_stored_nowhere(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            target = LogTarget(pipeline.url, "t")
            async with open_log_shipping(tmp_path / "spool", target, secrets=("from-env",)) as sink:
                await sink.write("stdout", 0, b"a from-env b\n::add-mask::from-job\n")
                await sink.write("stderr", 0, b"c from-job from-")
                await sink.write("stderr", 16, b"env d\n")
                await sink.mask(["late"])
                await sink.write("stderr", 22, b"too late\n")
                await until(lambda: len(pipeline.rows) == 4)
                assert b"from-" not in stored(tmp_path / "spool")
                await sink.finish()
            assert pipeline.messages() == ["a *** b", "::add-mask::***"]
            assert pipeline.messages("stderr") == ["c *** *** d", "too ***"]


async def test_what_may_begin_a_secret_is_neither_told_nor_acknowledged_until_more_comes(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            target = LogTarget(pipeline.url, "t")
            async with open_log_shipping(tmp_path / "spool", target, secrets=("hunter2",)) as sink:
                assert await sink.write("stdout", 0, b"it is hunt") == 6
                assert sink.offsets == (6, 0)
                await until(lambda: pipeline.messages() == ["it is "])
                assert await sink.write("stdout", 10, b"ing\n::add-") == 14
                assert await sink.write("stdout", 20, b"mask::x") == 14
                await sink.flush()
                assert sink.offsets == (27, 0)
                assert await sink.finish()
            assert pipeline.messages() == ["it is ", "hunting", "::add-mask::***"]


async def test_the_end_without_a_flush_tells_what_was_held_back(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            target = LogTarget(pipeline.url, "t")
            async with open_log_shipping(tmp_path / "spool", target, secrets=("hunter2",)) as sink:
                assert await sink.write("stdout", 0, b"hunt") == 0
                assert await sink.finish()
            assert pipeline.messages() == ["hunt"]


async def test_an_agent_killed_in_the_middle_of_a_secret_is_followed_by_one_that_hides_it(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, trio\n"
        "from nimbus.host_agent.logs import LogTarget, open_log_shipping\n"
        "async def main():\n"
        "    target = LogTarget('http://127.0.0.1:9', 't')\n"
        "    async with open_log_shipping(pathlib.Path(sys.argv[1]), target) as sink:\n"
        "        safe = await sink.write('stdout', 0, b'::add-mask::hunter2\\nhunter2 is hunt')\n"
        "        print(safe, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    said = b"::add-mask::hunter2\nhunter2 is hunter2\n"
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            argv = [sys.executable, "-c", program, str(tmp_path / "spool")]
            process = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert int(await process.stdout.receive_some(100)) == len(said) - len(b"hunter2\n")
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await process.stdout.aclose()
            async with open_log_shipping(tmp_path / "spool", LogTarget(pipeline.url, "t")) as sink:
                safe = sink.offsets[0]
                await sink.write("stdout", safe, said[safe:])
                assert await sink.finish()
            assert pipeline.messages() == ["::add-mask::***", "*** is ***"]


async def test_a_job_that_asks_for_too_much_secrecy_has_the_rest_of_its_output_withheld(tmp_path: Path) -> None:
    asked = b"".join(b"::add-mask::%06d secret\n" % (number * 7919) for number in range(MASKS_MAX + 1))
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            target = LogTarget(pipeline.url, "t")
            async with open_log_shipping(tmp_path / "spool", target) as sink:
                assert await sink.write("stdout", 0, asked) == len(asked)
                assert await sink.write("stderr", 0, b"not told\n") == 9
            async with open_log_shipping(tmp_path / "spool", target) as sink:
                await sink.write("stdout", len(asked), b"not told either\n")
                assert await sink.finish()
            told = [row["message"] for row in pipeline.rows if "withheld" in row["message"]]
            assert len(told) == 1
            assert not [row for row in pipeline.rows if "not told" in row["message"]]


async def test_masks_that_the_disk_does_not_take_keep_what_follows_them_off_it(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            folder = tmp_path / "spool"
            async with open_log_shipping(folder, LogTarget(pipeline.url, "t")) as sink:
                (folder / "masks.json.new").mkdir()
                await sink.write("stdout", 0, b"before\n::add-mask::hunter2\nafter\n")
                (folder / "masks.json.new").rmdir()
                await sink.write("stdout", 33, b"again hunter2\n")
                assert await sink.finish()
            assert pipeline.messages()[-1] == "again ***"
            assert "after" not in pipeline.messages()
            (told,) = pipeline.messages("agent")
            assert told.endswith("of stdout dropped: the log spool had no room")
