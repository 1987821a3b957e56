"""Numbered lines through everything that can befall them on their way: `python -m tests.acceptance.logsoak`.

Real log shippers in processes of their own, the pipeline as operators start it, its engine and a network between them;
all are killed at random while lines are printed. Then every line must be there once and in order: in the pages of the
query API, in the table itself, and for followers that were there all the time. `make soak-logs` runs the whole of it,
test_log_soak.py a short form. Exit status 1 where anything is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from nimbus.runtime.telemetry import configure_logging
from tests.acceptance.logsoakfollow import Follower
from tests.acceptance.logsoakfound import Found, Kill, SoakPlan, describe, judge
from tests.acceptance.logsoaklines import Printed
from tests.acceptance.logsoakrelay import FAULTS, until
from tests.acceptance.logsoaksite import (
    FAILED_INSERTS,
    FENCE,
    REPEATED,
    STORED,
    Site,
    machine_of,
    open_site,
    org_of,
    stop_service,
)
from tests.acceptance.logsoakverdict import JobCheck
from tests.unit.logging_pipeline.rig import bearer, run_engine

TABLE = "nimbus.ci_logs"
PAGE_ROWS = 10_000
READERS = 3  # jobs that are read at once
TICK_S = 0.1
EVEN_S = 2.0  # a card that was played lets more lines out over some seconds: there are always some on their way
STORE_S = 300.0  # for the first rows after a kill, on a machine that others use as well
SETTLE_S = 3600.0  # for all that was printed to arrive; FOLLOW_S for its followers to be told
FOLLOW_S = 300.0
RUSHED = 0.2  # of the kills come before what was killed has stored anything again
HELD_BACK = 0.03  # of all lines, until the last kill is done
PROCESSES = ("service", "engine", "agent")
Act = Callable[[str, random.Random], Awaitable[None]]


class Storm:
    """Who kills whom, when: two decks of cards in an order of dice, one for processes, one for the network."""

    def __init__(self, site: Site, found: Found) -> None:
        self._site, self._found = site, found
        self._began = trio.current_time()
        self._left = {"processes": 1, "network": 1}  # cards
        self._dealt = {"processes": 1, "network": 1}

    @property
    def elapsed_s(self) -> float:
        return trio.current_time() - self._began

    @property
    def is_over(self) -> bool:
        return not any(self._left.values()) and self.elapsed_s >= self._found.plan.seconds

    async def run(self) -> None:
        """Until all cards are played and the time is over; lines are printed in the same measure meanwhile."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._play, "processes", PROCESSES, self._kill_process)
            nursery.start_soon(self._play, "network", FAULTS, self._strike_network)
            while not self.is_over:
                behind = max(0.0, self._share() - self._site.share)
                self._site.allow(self._site.share + behind * TICK_S / EVEN_S)
                await trio.sleep(TICK_S)
            self._found.killing_s = self.elapsed_s
            nursery.cancel_scope.cancel()
        self._site.allow(1.0)

    def _share(self) -> float:
        played = min(1 - self._left[deck] / self._dealt[deck] for deck in self._left)
        by_time = min(1.0, self.elapsed_s / self._found.plan.seconds) if self._found.plan.seconds else 1.0
        # one card ahead, since a card may wait for rows to kill somebody over
        ahead = 1 / max(self._dealt.values())
        return min(played + ahead, by_time, 1.0) * (1 - HELD_BACK)

    async def _play(self, name: str, kinds: tuple[str, ...], act: Act) -> None:
        await until(lambda: self._site.lines > 0)
        rng = random.Random(f"{self._found.plan.seed} {name}")
        wanted = self._found.plan.wanted()
        deck = [kind for kind in kinds for _ in range(wanted[kind])]
        rng.shuffle(deck)
        self._left[name] = self._dealt[name] = len(deck)
        while True:
            kind = deck.pop() if deck else rng.choice(kinds)
            await act(kind, rng)
            self._found.kills.append(Kill(kind, self.elapsed_s, self._site.lines))
            self._left[name] = len(deck)

    async def _kill_process(self, kind: str, rng: random.Random) -> None:
        if rng.random() >= RUSHED:
            await self._wait_stored()
        await trio.sleep(rng.uniform(0, 2))
        await until(lambda: self._kill(kind, rng))

    def _kill(self, kind: str, rng: random.Random) -> bool:
        if kind == "service":
            return self._site.kill_service()
        if kind == "engine":
            return self._site.kill_engine()
        running = [agent for agent in self._site.agents if agent.popen is not None]
        for agent in rng.sample(running, min(1, len(running))):
            agent.kill()
        return bool(running)

    async def _strike_network(self, kind: str, rng: random.Random) -> None:
        await trio.sleep(rng.uniform(0.1, 1.0))
        await self._site.relay.strike(kind, rng.uniform(0.2, 1.0))

    async def _wait_stored(self) -> None:
        """Until rows are stored again: there is something to kill then."""
        before = self._site.counters[STORED]
        with trio.move_on_after(STORE_S) as waiting:
            await until(lambda: self._site.counters[STORED] > before)
        if waiting.cancelled_caught:
            self._found.faults.append(f"+{self.elapsed_s:.0f} s: no row was stored for {STORE_S:g} s")


async def run_soak(plan: SoakPlan, folder: Path, say: Callable[[str], None] = print) -> Found:
    """All of it, from the first line to the last look into the table."""
    found, began = Found(plan), time.monotonic()
    jobs = plan.printed()
    async with open_site(jobs, plan.agents, folder, random.Random(f"{plan.seed} site")) as site:
        async with trio.open_nursery() as nursery:
            found.followers = plan_followers(site, plan)
            nursery.start_soon(show_progress, site, found, say)
            async with trio.open_nursery() as following:
                for follower in found.followers:
                    following.start_soon(follower.run)
                await Storm(site, found).run()
                if await settle(site, found):
                    following.cancel_scope.deadline = trio.current_time() + FOLLOW_S
                else:
                    following.cancel_scope.cancel()
            say("reading pages")
            limiter = trio.CapacityLimiter(READERS)
            async with trio.open_nursery() as reading:
                for job in jobs:
                    reading.start_soon(read_pages, site, job, found, limiter)
            nursery.cancel_scope.cancel()
        await stop_service(site)
        say("reading the table")
        await read_table(site, found)
        found.faults += site.faults
        found.counters = {name: site.counters[name] for name in (STORED, REPEATED, FAILED_INSERTS)}
        found.rss_mib = site.rss_mib
    found.took_s = time.monotonic() - began
    return found


def plan_followers(site: Site, plan: SoakPlan) -> list[Follower]:
    """Half of them beyond the bad network, half beside the pipeline, and one that reads slowly."""
    step = max(1, plan.jobs // max(1, plan.followers))
    return [
        Follower(
            site.relay.port if number % 2 else site.service_port,
            f"/logs/jobs/{job.job_id}/follow",
            site.read_token(org_of(job.job_id)),
            JobCheck(job, "follower"),
            is_slow=number == 0,
        )
        for number, job in enumerate(site.jobs[::step][: plan.followers])
    ]


async def settle(site: Site, found: Found) -> bool:
    """Until all has arrived; then the jobs are over, as the control plane says. False where it takes too long."""
    with trio.move_on_after(SETTLE_S) as waiting:
        await until(lambda: all(agent.is_done for agent in site.agents))
    for agent in site.agents:
        found.faults += agent.failed
        if waiting.cancelled_caught:
            found.faults.append(f"{len(agent.jobs) - agent.arrived} jobs of an agent did not arrive")
    for job in site.control.jobs.values():
        job["state"] = "completed"
    return not waiting.cancelled_caught


async def read_pages(site: Site, job: Printed, found: Found, limiter: trio.CapacityLimiter) -> None:
    """A job through the query API."""
    check = JobCheck(job, "pages")
    found.checks.append(check)
    async with limiter:
        await read_all_pages(site, job, found, check)


async def read_all_pages(site: Site, job: Printed, found: Found, check: JobCheck) -> None:
    headers, after = bearer(site.read_token(org_of(job.job_id))), ""
    while True:
        params = {"limit": str(PAGE_ROWS)} | ({"after": after} if after else {})
        url = f"http://127.0.0.1:{site.service_port}/logs/jobs/{job.job_id}"
        answer = await site.client.get(url, params=params, headers=headers)
        if answer.status_code != 200:
            found.faults.append(f"the page of job {job.job_id} answered {answer.status_code}: {answer.text[:200]}")
            return
        page = answer.json()
        for row in page["rows"]:
            check.see(row["seq"], row["stream"], row["message"], row["step"])
        if not page["more"]:
            return
        after = page["next"]
        await trio.lowlevel.checkpoint()


async def read_table(site: Site, found: Found) -> None:
    """Every job straight from the table, each row that is stored as often as it is stored."""
    with run_engine(site.state / "clickhouse") as endpoint:

        async def ask(sql: str) -> list[str]:
            auth = (endpoint.username, endpoint.password)
            answer = await site.client.post(endpoint.url, content=f"{sql} FORMAT JSONEachRow".encode(), auth=auth)
            assert answer.status_code == 200, answer.text
            return answer.text.splitlines()

        [counted] = await ask(f"SELECT count() AS n FROM {TABLE}")  # noqa: S608 - ours
        found.rows["table"] = int(json.loads(counted)["n"])
        strays = 0
        for job in site.jobs:
            check = JobCheck(job, "table")
            found.checks.append(check)
            whose = f"org_id = {org_of(job.job_id)} AND machine_id = {machine_of(job.job_id)} AND fence = {FENCE}"
            for line in await ask(f"SELECT * FROM {TABLE} WHERE {whose} ORDER BY seq"):  # noqa: S608 - ours
                row = json.loads(line)
                check.see(int(row["seq"]), row["stream"], row["message"], int(row["step"]))
                # 0: from before its link was known
                strays += int(row["job_id"]) not in (0, job.job_id)
        if strays:
            found.faults.append(f"{strays} rows in the table name another job")


async def show_progress(site: Site, found: Found, say: Callable[[str], None]) -> None:
    """A line each second."""
    began = trio.current_time()
    while True:
        await trio.sleep(1)
        struck = " ".join(f"{kind} {found.struck[kind]}" for kind in found.plan.wanted())
        arrived = sum(agent.arrived for agent in site.agents)
        seen = sum(follower.check.lines for follower in found.followers)
        say(
            f"+{trio.current_time() - began:4.0f} s  printed {site.lines}  stored {site.counters[STORED]}"
            f"  followed {seen}  read {sum(check.lines for check in found.checks)}"
            f"  arrived {arrived} of {len(site.jobs)} jobs  kills: {struck}"
        )


def parse_arguments() -> SoakPlan:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.logsoak", description=__doc__)
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--agents", type=int, default=5, help="processes that ship the jobs' output")
    parser.add_argument("--kills", type=int, default=20, help="of each kind at least")
    parser.add_argument("--seconds", type=float, default=120.0, help="of killing at least")
    parser.add_argument("--followers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    told = parser.parse_args()
    return SoakPlan(told.lines, told.jobs, told.agents, told.kills, told.seconds, told.seed, told.followers)


def main() -> int:
    plan = parse_arguments()
    configure_logging("WARNING")
    folder = Path(tempfile.mkdtemp(prefix="nimbus-logsoak-"))
    print(f"seed {plan.seed} in {folder}", flush=True)  # noqa: T201 - a command
    found = trio.run(run_soak, plan, folder, lambda line: print(line, flush=True))  # noqa: T201
    wrong = judge(found)
    print(describe(found))  # noqa: T201
    for line in wrong:
        print(f"WRONG: {line}")  # noqa: T201
    if wrong:
        print(f"{len(wrong)} things are wrong; all of it is in {folder}; --seed {plan.seed} repeats it")  # noqa: T201
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
