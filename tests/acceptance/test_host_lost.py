"""A host that is lost for longer than a lease lasts: its VM is dead before another host gets the work, and stays dead.

The control plane cannot see that VM, so only the holder's own deadlines can keep this promise: the agent's scope, the
keeper's deadline behind it, and a keeper's death that takes its VMM along. When the host comes back, it finds
itself fenced and touches nothing of the second run. Both hosts are agents on this one, so that one clock times both.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from nimbus.host import process
from tests.acceptance.fleet import Agent, Fleet, running_fleet, show, watch_deaths
from tests.acceptance.stack import wait_until
from tests.hosts import needs_root
from tests.services import PostgresServer, RedisServer, open_schema

pytestmark = [needs_root, pytest.mark.root, pytest.mark.services, pytest.mark.slow]

TTL_S = 8
# Full with one job: a second one's request would wait at the control plane when the host is lost, and be granted the
# work that nobody serves there, for one more ttl.
ONE_CPU = str(1.01 / len(os.sched_getaffinity(0)))
FAR = "127.0.0.2"  # where the first agent finds the control plane: an address that can be cut off
TERMINAL = {"done", "failed", "cancelled", "lost"}
Loss = Callable[[Fleet, Agent], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, shared_redis: RedisServer
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with (
        open_schema(postgres_server) as dsn,
        running_fleet(folder, dsn, shared_redis.url, logs=False, NIMBUS_JOB_LEASE_TTL=str(TTL_S)) as running,
    ):
        yield running


# --- how a host is lost ----------------------------------------------------------------------------------------------


@contextmanager
def dropped(rule: str) -> Iterator[None]:
    """This host's kernel drops what the rule matches."""
    table = f"nbtest-{uuid.uuid4().hex[:8]}"
    chain = "type filter hook input priority -150; policy accept;"
    rules = f"table inet {table} {{\nchain lost {{\n{chain}\n{rule} drop\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", table], check=True, timeout=30)


def partitioned(fleet: Fleet, _: Agent) -> AbstractContextManager[None]:
    """Nothing that it says arrives."""
    return dropped(f"ip daddr {FAR} tcp dport {fleet.port}")


def unanswered(fleet: Fleet, _: Agent) -> AbstractContextManager[None]:
    """What it says arrives; the replies do not."""
    return dropped(f"ip saddr {FAR} tcp sport {fleet.port}")


@contextmanager
def killed(_: Fleet, agent: Agent) -> Iterator[None]:
    """Dead; started again only when all is over."""
    agent.kill()
    yield
    agent.start()


@contextmanager
def frozen(_: Fleet, agent: Agent) -> Iterator[None]:
    """Stopped, and continued later: it does not know that time has passed."""
    agent.send(signal.SIGSTOP)
    yield
    agent.send(signal.SIGCONT)


@contextmanager
def keeperless(fleet: Fleet, agent: Agent) -> Iterator[None]:
    """Cut off, and its VM's keeper is killed as well."""
    keeper = agent.vm_processes()[0]
    with partitioned(fleet, agent):
        fd = process.open_pidfd(keeper)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
        yield


# --- what must hold --------------------------------------------------------------------------------------------------


def beating(beats: Path, gate: Path) -> str:
    """A shell line that says every 100 ms which run it is, until the gate is there: a witness outside the product."""
    run = "run=$(cat /proc/sys/kernel/random/uuid)"
    return f"{run}; until test -e {gate}; do echo $run $(date +%s.%N) >> {beats}; sleep 0.1; done"


def read_runs(beats: Path) -> list[tuple[float, float]]:
    """The first and the last beat of each run, by its first."""
    runs: dict[str, list[float]] = {}
    for line in beats.read_text().splitlines():
        run, moment = line.split()
        runs.setdefault(run, []).append(float(moment))
    return sorted((min(moments), max(moments)) for moments in runs.values())


@pytest.mark.parametrize("lose", [partitioned, unanswered, killed, frozen, keeperless])
def test_the_vm_of_a_lost_host_is_dead_before_its_work_is_leased_again_and_its_return_changes_nothing(
    fleet: Fleet, lose: Loss, tmp_path: Path
) -> None:
    beats, gate = tmp_path / "beats", tmp_path / "gate"
    with fleet.agent("first", "fake", host=FAR, NIMBUS_AGENT_CPU_OVERCOMMIT=ONE_CPU) as first, ExitStack() as opened:
        job_id = fleet.submit(beating(beats, gate))
        fleet.wait_job(job_id, "in_progress")
        wait_until(beats.exists, "the first run beats")
        watch = watch_deaths(first.vm_processes())
        with lose(fleet, first):
            lost_at = time.time()
            second = opened.enter_context(fleet.agent("second", "fake"))
            wait_until(lambda: len(read_runs(beats)) == 2, "the second run beats")
            serving = second.vm_processes()
        wait_until(lambda: not first.records(), "the first host knows that it has lost")
        untouched = all(process.is_alive(one) for one in serving)
        gate.touch()
        job = fleet.wait_job(job_id, "completed")
        steps = fleet.trace(job_id)
        died_at = watch.wait()
    runs = read_runs(beats)
    leased_at = next(step["at_ms"] / 1000 for step in steps if (step["event"], step["fence"]) == ("lease", 2))
    show(
        f"{lose.__name__} at {lost_at:.3f}: its VM was dead at {died_at:.3f}, leased again at {leased_at:.3f},"
        f" {leased_at - died_at:.3f} s later; last beat of the first run {runs[0][1]:.3f},"
        f" first of the second {runs[1][0]:.3f}"
    )
    assert lost_at < leased_at
    assert died_at < leased_at
    assert runs[0][1] < runs[1][0]
    assert untouched
    assert (len(runs), job["conclusion"], job["machines"][0]["fence"]) == (2, "success", 2)
    assert [step["event"] for step in steps if step["state_to"] in TERMINAL] == ["finish_ok"]
    assert [step["told_by"] for step in steps if step["event"] == "expire"] == ["clock"]
