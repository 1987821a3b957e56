"""The whole of nimbus-init under ASan and UBSan: a bug in memory ends it, and its exit status says so."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.model.vm import Command, ExitReason, GuestExit
from tests.native.guest_double import CutStream, Double, Host, new_session, open_double, run_once, shell

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the command becomes the user that it asks for"),
]
GUEST = Path(__file__).resolve().parents[2] / "native" / "guest"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("sanitized") / "nimbus-init"
    sources = sorted(str(source) for source in GUEST.glob("*.c"))
    subprocess.run(["cc", *FLAGS, *sources, "-o", str(built)], check=True)
    return built


async def test_an_ordinary_job_touches_no_memory_that_is_not_its_own(program: Path, tmp_path: Path) -> None:
    env = {f"K{n}": "v" * 900 for n in range(200)}

    host = await run_once(tmp_path, replace(shell("seq 1 300000; echo e >&2; exit 3"), env=env), program=program)

    assert host.saved == [GuestExit(3, None)]


@pytest.mark.parametrize(
    "command",
    [Command(("no-such-program",)), Command(("true",), cwd="/none"), Command(("true",), user="a" * 300)],
    ids=["program", "folder", "user"],
)
async def test_a_job_that_cannot_start_does_neither(program: Path, tmp_path: Path, command: Command) -> None:
    host = await run_once(tmp_path, command, program=program)

    assert host.saved[0].reason is ExitReason.NOT_STARTED


async def test_nor_does_one_that_is_killed_with_all_its_children(program: Path, tmp_path: Path) -> None:
    script = "trap '' TERM; setsid sleep 1000 & (sleep 1000 &); echo up; while :; do sleep 0.05; done"

    host = await run_once(tmp_path, replace(shell(script), timeout_s=0.3, grace_s=0.2), program=program)

    assert host.saved[0].reason is ExitReason.TIMEOUT


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nor_does_a_link_that_is_cut_again_and_again(program: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    host = Host()
    cuts = 0

    async def connect_badly(double: Double) -> trio.abc.Stream:
        nonlocal cuts
        cuts += 1
        inner = await double.connect()
        if cuts > 25:
            return inner
        return CutStream(inner, int(10 ** chance.uniform(0, 5.8)), int(10 ** chance.uniform(0, 4.5)))

    async with open_double(tmp_path, program) as double:
        with trio.fail_after(60):
            await host.run(new_session(shell("seq 1 200000; seq 1 200000 >&2")), partial(connect_badly, double))
            await double.process.wait()

    assert double.process.returncode == 0
    assert host.sink.hashes["stdout"].digest() == host.sink.hashes["stderr"].digest()
