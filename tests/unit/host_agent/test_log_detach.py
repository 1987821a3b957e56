"""Logs that hurt nobody: whatever the pipeline does, output is taken at once, leaving is prompt, nothing is lost."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.logs import LogShipping, LogTarget, open_log_shipping, read_target
from nimbus.host_agent.output.logspool import open_spool
from nimbus.model.errors import Conflict, HostFault
from tests.unit.host_agent.logpipeline import Pipeline, open_pipeline, until

LINE = b"x" * 999 + b"\n"
PROMPT_S = 8.0  # far below the 30 s that a post may take, far above what this needs


def hang(pipeline: Pipeline) -> None:
    pipeline.pause_s = math.inf


def be_slow(pipeline: Pipeline) -> None:
    pipeline.pause_s = 2.0


def fail(pipeline: Pipeline) -> None:
    pipeline.statuses = [(503, {"Retry-After": "30"})] * 1000


def be_down(pipeline: Pipeline) -> None:
    pipeline.url = "http://127.0.0.1:9"


def open_target(pipeline: Pipeline) -> LogTarget:
    return LogTarget(pipeline.url, "t")


@asynccontextmanager
async def open_left(folder: Path, pipeline: Pipeline) -> AsyncIterator[LogShipping]:
    """What the next agent opens: it was told no target."""
    async with open_log_shipping(folder, LogTarget(None, None)) as sink:
        yield sink


@pytest.mark.parametrize("spoil", [hang, be_slow, fail, be_down])
async def test_a_bad_pipeline_delays_neither_output_nor_the_end(
    tmp_path: Path, spoil: Callable[[Pipeline], None]
) -> None:
    with trio.fail_after(90):
        async with open_pipeline() as pipeline:
            spoil(pipeline)
            with trio.fail_after(PROMPT_S):
                async with open_log_shipping(tmp_path / "spool", open_target(pipeline), flush_s=0.2) as sink:
                    for number in range(1000):
                        assert await sink.write("stdout", 1000 * number, LINE) == 1000 * (number + 1)
                    assert not await sink.finish()
            assert (tmp_path / "spool" / "target.json").exists()


class Canceller(trio.abc.Instrument):
    """Cancels a scope just before the k-th step that any task takes."""

    def __init__(self, at: int) -> None:
        self.scope = trio.CancelScope()
        self.left = at

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def test_a_sink_that_is_given_up_at_any_moment_of_its_opening_lets_go(tmp_path: Path) -> None:
    async with open_pipeline() as pipeline:
        for at in range(1, 80):
            canceller = Canceller(at)
            trio.lowlevel.add_instrument(canceller)
            try:
                with trio.fail_after(60), canceller.scope:
                    async with open_log_shipping(tmp_path / str(at), open_target(pipeline)):
                        await trio.sleep(0.01)
            finally:
                trio.lowlevel.remove_instrument(canceller)


async def test_left_without_an_end_the_next_agent_goes_on_and_each_row_arrives_once(tmp_path: Path) -> None:
    folder = tmp_path / "spools" / "spool"
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            async with open_log_shipping(folder, open_target(pipeline)) as sink:
                await sink.write("stdout", 0, b"one\ntw")
                await until(lambda: pipeline.messages() == ["one", "tw"])
                await sink.write("stderr", 0, b"oops\n")
            assert pipeline.messages("end") == []
            async with open_left(folder, pipeline) as sink:
                assert sink.offsets == (6, 5)
                await sink.write("stdout", 6, b"o\n")
                assert await sink.finish()
            by_number = {row["seq"]: row["message"] for row in pipeline.rows}
            assert [by_number[seq] for seq in range(len(by_number))] == ["one", "tw", "oops", "o", ""]
            assert not folder.exists()


async def test_a_cancelled_end_stays_in_the_spool_for_whoever_finds_it(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            hang(pipeline)
            with trio.move_on_after(0.5):
                async with open_log_shipping(tmp_path / "spool", open_target(pipeline)) as sink:
                    await sink.write("stdout", 0, b"x\n")
                    await sink.finish("so it ends")
            async with open_spool(tmp_path / "spool") as spool:
                assert spool.finished


async def test_a_cancelled_machine_leaves_promptly_and_without_an_end(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            hang(pipeline)
            with trio.fail_after(PROMPT_S), trio.CancelScope() as scope:
                async with open_log_shipping(tmp_path / "spool", open_target(pipeline)) as sink:
                    await sink.write("stdout", 0, b"x\n")
                    scope.cancel()
                    await trio.sleep_forever()
            async with open_spool(tmp_path / "spool") as spool:
                assert (spool.finished, spool.offsets) == (False, (2, 0))


async def test_a_spool_has_one_holder_and_is_readable_by_root_alone(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            folder = tmp_path / "spools" / "vm"
            async with open_log_shipping(folder, open_target(pipeline), secrets=("hunter2",)):
                with pytest.raises(Conflict):
                    async with open_log_shipping(folder, open_target(pipeline)):
                        pass
                assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
                notes = {name: (folder / name).stat().st_mode & 0o777 for name in ("target.json", "masks.json")}
                assert notes == {"target.json": 0o600, "masks.json": 0o600}
                assert read_target(folder) == open_target(pipeline)
                assert "'t'" not in repr(read_target(folder))


@pytest.mark.parametrize(
    "answer",
    [
        b'Content-Type: application/json\r\nContent-Length: 4\r\n\r\n{"ac',
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n\xff\xff",
        b"Content-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
    ],
)
async def test_an_answer_that_is_none_does_not_end_the_job(tmp_path: Path, answer: bytes) -> None:
    answered = trio.Event()

    async def answer_once(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + answer)
        answered.set()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, answer_once, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            target = LogTarget(f"http://127.0.0.1:{port}", "t")
            async with open_log_shipping(tmp_path / "spool", target, flush_s=0.5) as sink:
                await sink.write("stdout", 0, b"x\n")
                await answered.wait()
                await sink.finish()
            nursery.cancel_scope.cancel()


async def test_a_full_disk_does_not_keep_the_next_agent_from_a_spool_that_says_where_it_belongs(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            async with open_log_shipping(tmp_path / "spool", open_target(pipeline)) as sink:
                await sink.write("stdout", 0, b"x\n")
            (tmp_path / "spool" / "target.json.new").mkdir()  # no new file can be written in its place
            async with open_left(tmp_path / "spool", pipeline) as sink:
                assert sink.offsets == (2, 0)
            with pytest.raises(HostFault):
                async with open_log_shipping(tmp_path / "spool", LogTarget("http://elsewhere", "t")):
                    pass
