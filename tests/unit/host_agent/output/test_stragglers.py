"""Spools that outlived their VM: shipped by whoever is there, or given up in time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import trio

from nimbus.host_agent.logs import LogTarget, open_log_shipping, save_target
from nimbus.host_agent.output.stragglers import (
    Straggler,
    StragglerLimits,
    StragglerRound,
    plan_round,
    ship_round,
    ship_stragglers,
)
from tests.unit.host_agent.logpipeline import open_pipeline, until

NOWHERE = LogTarget("http://127.0.0.1:9", "t")
LOST = "nimbus: the end of this output was lost with its agent"


def nobody(_: str) -> bool:
    return False


async def leave(folder: Path, target: LogTarget, text: bytes, *, finished: bool) -> None:
    """A spool as a machine's end, or an agent's, leaves it while the pipeline is away."""
    async with open_log_shipping(folder, LogTarget(NOWHERE.url, target.token), flush_s=0) as sink:
        await sink.write("stdout", 0, text)
        if finished:
            await sink.finish()
    save_target(folder, target)


async def test_what_was_left_arrives_and_a_lost_end_is_told(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            target = LogTarget(pipeline.url, "t")
            await leave(tmp_path / "0000000a", target, b"whole\n", finished=True)
            told = await ship_round(tmp_path, nobody, StragglerLimits())
            assert told == StragglerRound(0, 0, shipped=1, given_up=0)
            assert [(row["stream"], row["message"]) for row in pipeline.rows] == [("stdout", "whole"), ("end", "")]
            pipeline.rows.clear()
            await leave(tmp_path / "0000000b", target, b"half a li", finished=False)
            await ship_round(tmp_path, nobody, StragglerLimits())
            told_rows = [(row["stream"], row["message"]) for row in pipeline.rows]
            assert told_rows == [("stdout", "half a li"), ("agent", LOST), ("end", "")]
            assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - a test's own folder


async def test_a_pipeline_that_moved_gets_what_was_left_for_its_old_address(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            await leave(tmp_path / "0000000a", NOWHERE, b"whole\n", finished=True)
            told = await ship_round(tmp_path, nobody, StragglerLimits(sink_url=pipeline.url))
            assert told == StragglerRound(0, 0, shipped=1, given_up=0)
            await leave(tmp_path / "0000000b", NOWHERE, b"one\n", finished=False)
            async with open_log_shipping(tmp_path / "0000000b", LogTarget(pipeline.url, None)) as sink:
                assert await sink.finish()
            assert [row["message"] for row in pipeline.rows if row["stream"] == "stdout"] == ["whole", "one"]


async def test_a_spool_with_a_record_or_in_use_is_left_alone(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            target = LogTarget(pipeline.url, "t")
            await leave(tmp_path / "00000001", target, b"mine\n", finished=True)
            async with open_log_shipping(tmp_path / "00000002", NOWHERE):
                told = await ship_round(tmp_path, lambda name: name == "00000001", StragglerLimits())
            assert (told.shipped, told.given_up, pipeline.posts) == (0, 0, 0)
            assert (tmp_path / "00000001" / "target.json").exists()


async def test_what_is_refused_or_too_old_is_given_up(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_pipeline() as pipeline:
            pipeline.statuses = [(401, {})]
            await leave(tmp_path / "00000003", LogTarget(pipeline.url, "t"), b"x\n", finished=True)
            await leave(tmp_path / "00000004", LogTarget(pipeline.url, "t"), b"x\n", finished=True)
            os.utime(tmp_path / "00000004" / "target.json", (1, 1))
            told = await ship_round(tmp_path, nobody, StragglerLimits())
            assert told == StragglerRound(0, 0, shipped=0, given_up=2)
            assert pipeline.posts == 1


async def test_a_pipeline_that_is_away_costs_each_spool_one_turn(tmp_path: Path) -> None:
    with trio.fail_after(60):
        for name in ("0000000a", "0000000b"):
            await leave(tmp_path / name, NOWHERE, b"x\n", finished=True)
        told = await ship_round(tmp_path, nobody, StragglerLimits(turn_s=0.3))
        assert (told.waiting, told.shipped, told.given_up) == (2, 0, 0)
        assert told.waiting_bytes > 0


async def test_rounds_go_on_over_spools_that_cannot_be_read(tmp_path: Path) -> None:
    rounds: list[StragglerRound] = []
    with trio.fail_after(60):
        async with open_pipeline() as pipeline, trio.open_nursery() as nursery:
            await leave(tmp_path / "00000005", LogTarget(pipeline.url, "t"), b"x\n", finished=True)
            (tmp_path / "00000005" / "shipped.json").write_text("")
            await leave(tmp_path / "00000006", LogTarget(pipeline.url, "t"), b"x\n", finished=True)
            (tmp_path / "00000006" / "target.json").write_text("{}")
            (tmp_path / "00000007").mkdir()
            limits = StragglerLimits(round_s=0.05)

            async def serve() -> None:
                await ship_stragglers(tmp_path, is_owned=nobody, on_round=rounds.append, limits=limits)

            nursery.start_soon(serve)
            await until(lambda: len(rounds) >= 2)
            await leave(tmp_path / "00000008", LogTarget(pipeline.url, "t"), b"good\n", finished=True)
            await until(lambda: pipeline.messages() == ["good"])
            nursery.cancel_scope.cancel()
    assert rounds[0].waiting == 2


async def test_what_is_no_spool_of_a_vm_is_left_alone(tmp_path: Path) -> None:
    for name in ("zzzzzzzz", "notes"):
        (tmp_path / name).mkdir()
    assert await ship_round(tmp_path, nobody, StragglerLimits()) == StragglerRound(0, 0, 0, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"zzzzzzzz", "notes"}  # noqa: ASYNC240 - a test's own folder


def test_of_too_much_the_newest_is_kept_and_the_oldest_shipped_first() -> None:
    now = time.time()
    old, middle, new = (Straggler(Path(name), 10, now - age) for name, age in (("o", 9), ("m", 5), ("n", 1)))
    keep, drop = plan_round([middle, new, old], now, StragglerLimits(total_max_bytes=20))
    assert (keep, drop) == ([middle, new], [old])
