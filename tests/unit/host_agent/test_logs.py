"""Shipping a VM's output into a real pipeline: through crashes, outages and refusals."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from nimbus.host_agent.logs import LogShipping, LogTarget, open_log_shipping
from nimbus.host_agent.output.lines import LogRow
from nimbus.host_agent.output.logspool import open_spool
from nimbus.host_agent.output.shipping import ingest_url, pack_body, plan_batches, render_batch
from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.ingest.unpacking import unpack
from nimbus.logging_pipeline.rows import Source
from nimbus.model.errors import Refused
from tests.unit.host_agent.logpipeline import open_pipeline, until
from tests.unit.logging_pipeline.rig import open_rig, run_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with run_engine(tmp_path_factory.mktemp("engine") / "store") as endpoint:
        yield endpoint


@asynccontextmanager
async def finishing(folder: Path, url: str, token: str, **options: Any) -> AsyncIterator[LogShipping]:
    """A sink whose output ends with the block."""
    async with open_log_shipping(folder, LogTarget(url, token), **options) as sink:
        try:
            yield sink
        finally:
            with trio.move_on_after(60, shield=True):
                await sink.finish()


async def test_output_arrives_in_order_with_an_end_row(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            async with finishing(tmp_path / "spool", rig.url, rig.machine_token()) as sink:
                await sink.write("stdout", 0, b"one\ntw")
                await sink.write("stderr", 0, b"oops\n")
                await sink.write("stdout", 6, b"o\nlast without newline")
            page = (await rig.read("/logs/machines/7")).json()["rows"]
            assert [(row["stream"], row["message"]) for row in page] == [
                ("stdout", "one"),
                ("stderr", "oops"),
                ("stdout", "two"),
                ("stdout", "last without newline"),
                ("end", ""),
            ]


async def test_an_unfinished_line_is_told_when_it_stays_quiet(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            open_pipeline() as pipeline,
            finishing(tmp_path / "spool", pipeline.url, "t") as sink,
        ):
            await sink.write("stdout", 0, b"Password: ")
            await until(lambda: pipeline.messages() == ["Password: "])


async def test_bytes_that_come_again_are_taken_once_and_missing_ones_are_told(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            async with finishing(tmp_path / "spool", pipeline.url, "t") as sink:
                await sink.write("stdout", 0, b"abc\n")
                await sink.write("stdout", 0, b"abc\n")
                await sink.write("stdout", 2, b"c\ndef\n")
                await sink.write("stdout", 100, b"ghi\n")
            assert pipeline.messages() == ["abc", "def", "ghi"]
            assert pipeline.messages("agent") == ["nimbus: 92 bytes of stdout never reached the host"]


async def test_a_large_batch_is_sent_packed_and_a_small_one_as_it_is(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            async with finishing(tmp_path / "spool", pipeline.url, "t") as sink:
                await sink.write("stdout", 0, b"small\n")
                await until(lambda: pipeline.messages() == ["small"])
                assert pipeline.packed == 0
                lines = b"".join(b"line %d of a build that prints a lot\n" % n for n in range(2000))
                await sink.write("stdout", 6, lines)
            assert b"".join(f"{line}\n".encode() for line in pipeline.messages()[1:]) == lines
            assert pipeline.packed > 0


@pytest.mark.parametrize("message", ["x" * 64 * 1024, "\x1b[1m" * 10_000, "", "\u00e9" * 30_000])
def test_no_batch_is_packed_so_well_that_the_pipeline_takes_it_for_a_bomb(message: str) -> None:
    rows = [LogRow(seq, 1_800_000_000_000, "stdout", message) for seq in range(40)]
    [batch, *_] = plan_batches(rows)
    plain = render_batch(batch)
    body, headers = pack_body(plain)
    assert unpack(body, headers.get("Content-Encoding", "identity")) == plain


async def test_a_fence_that_is_over_ends_the_shipping_but_not_the_job(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            long_ago = int(time.time() * 1000) - 3_600_000
            rig.services.writer.fences.note(Source(1, 7, 2), long_ago)
            async with finishing(tmp_path / "spool", rig.url, rig.machine_token(fence=1)) as sink:
                await sink.write("stdout", 0, b"of a host that lost its lease\n")
            assert await rig.messages("/logs/machines/7") == []


async def test_outages_are_waited_for_as_told_and_lose_nothing(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            pipeline.statuses = [(503, {"Retry-After": "1"}), (429, {"Retry-After": "1"}), (500, {}), (502, {})]
            began = trio.current_time()
            async with finishing(tmp_path / "spool", pipeline.url, "t", flush_s=40) as sink:
                await sink.write("stdout", 0, b"kept\n")
            assert pipeline.messages() == ["kept"]
            assert trio.current_time() - began > 2
            assert pipeline.posts >= 5


async def test_a_refused_token_stops_the_shipping_but_not_the_job(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            pipeline.statuses = [(401, {})] * 100
            async with finishing(tmp_path / "spool", pipeline.url, "t") as sink:
                await sink.write("stdout", 0, b"x\n")
                await until(lambda: pipeline.posts == 1)
                for number in range(1, 200):
                    await sink.write("stdout", 2 * number, b"x\n")
            assert pipeline.posts == 1


async def test_the_end_of_a_machine_waits_only_so_long_for_its_rows(tmp_path: Path) -> None:
    with trio.fail_after(60):
        began = trio.current_time()
        target = LogTarget("http://127.0.0.1:9", "t")
        async with open_log_shipping(tmp_path / "spool", target, flush_s=0.5) as sink:
            await sink.write("stdout", 0, b"x\n")
            assert not await sink.finish()
        assert trio.current_time() - began < 30


async def test_a_cancelled_machine_still_gets_its_rows_out(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            with trio.CancelScope() as scope:
                async with finishing(tmp_path / "spool", pipeline.url, "t") as sink:
                    await sink.write("stdout", 0, b"last words\n")
                    scope.cancel()
                    await trio.sleep_forever()
            assert pipeline.messages() == ["last words"]
            assert pipeline.messages("end") == [""]


async def test_beyond_the_cap_the_oldest_unread_lines_go_and_a_row_says_how_many(tmp_path: Path) -> None:
    lines = 20_000
    with trio.fail_after(120):
        async with open_pipeline() as pipeline:
            pipeline.statuses = [(503, {"Retry-After": "1"})]
            text = [b"%0998d\n" % number for number in range(lines)]
            async with finishing(tmp_path / "spool", pipeline.url, "t", cap_bytes=8 * 2**20, flush_s=50) as sink:
                for number in range(0, lines, 50):
                    await sink.write("stdout", 999 * number, b"".join(text[number : number + 50]))
                assert sink.dropped_lines > 0
            kept = [int(message) for message in pipeline.messages()]
            (told,) = pipeline.messages("agent")
            gone = sorted(set(range(lines)) - set(kept))
            assert told == f"nimbus: {len(gone)} lines ({len(gone) * 999} bytes) dropped: the log spool had no room"
            assert kept == sorted(set(kept))
            assert gone == list(range(gone[0], gone[-1] + 1))
            assert (kept[0], kept[-1]) == (0, lines - 1)
            assert [row["seq"] for row in pipeline.rows] == list(range(len(pipeline.rows)))
            assert not (tmp_path / "spool").exists()


async def test_a_full_disk_costs_output_and_not_the_job(tmp_path: Path) -> None:
    program = (
        "import pathlib, resource, signal, sys, trio\n"
        "from nimbus.host_agent.logs import LogTarget, open_log_shipping\n"
        "async def main():\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "    async with open_log_shipping(pathlib.Path(sys.argv[1]), LogTarget(sys.argv[2], 't')) as sink:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))\n"
        "        for number in range(100):\n"
        "            await sink.write('stdout', 1000 * number, b'x' * 999 + b'\\n')\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
        "        await sink.write('stdout', 100_000, b'room again\\n')\n"
        "        await sink.finish()\n"
        "trio.run(main)\n"
    )
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            done = await trio.run_process(
                [sys.executable, "-c", program, str(tmp_path / "spool"), pipeline.url], capture_stdout=True
            )
            kept = len(pipeline.messages()) - 1
            assert 5 < kept < 10
            assert pipeline.messages()[-1] == "room again"
            assert pipeline.messages("agent") == [
                f"nimbus: {100 - kept} lines ({(100 - kept) * 1000} bytes) of stdout dropped: the log spool had no room"
            ]
            assert done.stdout.count(b"logs.spool_failed") == 1


async def test_without_a_pipeline_output_goes_nowhere(tmp_path: Path) -> None:
    for target in (LogTarget(None, None), LogTarget(None, "t"), LogTarget("http://logs", None)):
        async with open_log_shipping(tmp_path / "spool", target) as sink:
            assert await sink.write("stdout", 0, b"x" * 10) == 10
            assert sink.offsets == (10, 0)
            assert await sink.finish()
    assert not (tmp_path / "spool").exists()


async def test_only_a_host_without_a_pipeline_is_called_so(tmp_path: Path) -> None:
    """An end that is told late has no output left, since all of it has arrived: nothing is amiss on that host."""
    told = []
    for target in (LogTarget(None, "token"), LogTarget(None, None)):
        with capture_logs() as events:
            async with open_log_shipping(tmp_path / "spool", target):
                pass
        told.append([event["event"] for event in events])
    assert told == [["logs.not_shipped"], []]


def test_the_sink_url_may_be_the_service_or_its_route() -> None:
    assert ingest_url("http://logs:8002") == "http://logs:8002/ingest"
    assert ingest_url("http://logs:8002/") == "http://logs:8002/ingest"
    assert ingest_url("https://x/nimbus/ingest/") == "https://x/nimbus/ingest"
    for bad in ("logs:8002", "file:///etc/passwd", "http://"):
        with pytest.raises(Refused):
            ingest_url(bad)


async def test_a_spool_taken_up_by_the_next_agent_goes_on_where_the_first_was_killed(
    tmp_path: Path, engine: Endpoint
) -> None:
    program = (
        "import sys, trio, pathlib\n"
        "from nimbus.host_agent.logs import LogTarget, open_log_shipping\n"
        "async def main():\n"
        "    target = LogTarget(sys.argv[2], sys.argv[3])\n"
        "    async with open_log_shipping(pathlib.Path(sys.argv[1]), target) as sink:\n"
        "        offset = sink.offsets[0]\n"
        "        while offset < 200_000:\n"
        "            line = b'%09d\\n' % offset\n"
        "            await sink.write('stdout', offset, line)\n"
        "            offset += 10\n"
        "            if offset % 2_000 == 0: print(offset, flush=True)\n"
        "        await sink.finish()\n"
        "trio.run(main)\n"
    )
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            argv = [sys.executable, "-c", program, str(tmp_path / "spool"), rig.url, rig.machine_token()]
            for _ in range(3):
                process = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
                assert process.stdout is not None
                for _ in range(6):
                    await process.stdout.receive_some(10)
                process.send_signal(signal.SIGKILL)
                await process.wait()
                await process.stdout.aclose()
            await trio.run_process(argv)
            seen: list[str] = []
            cursor, more = "", True
            while more:
                page = (await rig.read("/logs/machines/7", after=cursor, limit="10000")).json()
                seen += [row["message"] for row in page["rows"] if row["stream"] == "stdout"]
                cursor, more = page["next"], page["more"]
            assert seen == [f"{offset:09d}" for offset in range(0, 200_000, 10)]


async def test_the_offsets_of_shipped_segments_are_not_forgotten(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            target = LogTarget(pipeline.url, "t")
            async with open_log_shipping(tmp_path / "spool", target) as sink:
                await sink.write("stdout", 0, b"abc\n")
                await until((tmp_path / "spool" / "shipped.json").exists)
            for segment in (tmp_path / "spool").glob("*.seg"):
                os.truncate(segment, 0)
            async with open_spool(tmp_path / "spool") as spool:
                assert spool.offsets == (4, 0)


@pytest.mark.slow
async def test_memory_stays_bounded_however_much_is_printed_while_the_pipeline_is_away(tmp_path: Path) -> None:
    block = (b"y\n" * 32768)[:65536]
    with trio.fail_after(120):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        target = LogTarget("http://127.0.0.1:9", "t")
        async with open_log_shipping(tmp_path / "spool", target, cap_bytes=32 * 2**20, flush_s=0.1) as sink:
            for number in range(4096):  # 256 MiB
                await sink.write("stdout", 65536 * number, block)
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown_mib < 100
