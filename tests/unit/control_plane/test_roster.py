"""GitHub's list of runners against ours: who is missing and who is stray, judged late and never by one look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.control_plane.runners.registrations import RunnerRules
from nimbus.control_plane.runners.roster import STRIKES_IN_PROGRESS, Machine, Sight, Strikes, judge_sight
from nimbus.wire.githubrest import RunnerSeen
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
from tests.unit.control_plane.runner_stage import leased, look, minted, registered, take_job
from tests.unit.control_plane.test_grants import explain, scans

PREFIX = "nimbus-ab12-"
RIPE = Machine(1, f"{PREFIX}1-1", in_progress=False, ripe=True)
STRAY = RunnerSeen(9, f"{PREFIX}9-1", online=False, busy=False, labels=())
AGE_S = 600.0


def sight(now_s: float = 0.0, machines: tuple[Machine, ...] = (), listed: tuple[RunnerSeen, ...] = ()) -> Sight:
    return Sight(PREFIX, now_s, machines, listed)


# --- judged --------------------------------------------------------------------------------------------------------


def test_a_machine_is_gone_when_two_lists_in_a_row_lack_its_runner() -> None:
    first = judge_sight(sight(machines=(RIPE,)), Strikes(), AGE_S)
    second = judge_sight(sight(machines=(RIPE,)), first.strikes, AGE_S)
    assert (first.gone, second.gone) == ((), (RIPE,))


def test_a_runner_that_is_seen_in_between_begins_anew() -> None:
    runner = replace(STRAY, name=RIPE.name.upper(), online=True)
    strikes = judge_sight(sight(machines=(RIPE,)), Strikes(), AGE_S).strikes
    strikes = judge_sight(sight(machines=(RIPE,), listed=(runner,)), strikes, AGE_S).strikes
    assert judge_sight(sight(machines=(RIPE,)), strikes, AGE_S).gone == ()


def test_a_runner_that_was_registered_a_moment_ago_may_be_missing() -> None:
    young, strikes = replace(RIPE, ripe=False), Strikes()
    for _ in range(5):
        judged = judge_sight(sight(machines=(young,)), strikes, AGE_S)
        strikes = judged.strikes
        assert judged.gone == ()


def test_a_machine_whose_job_runs_by_what_we_know_is_given_more_lists() -> None:
    busy, strikes, gone = replace(RIPE, in_progress=True), Strikes(), []
    for _ in range(STRIKES_IN_PROGRESS):
        judged = judge_sight(sight(machines=(busy,)), strikes, AGE_S)
        strikes = judged.strikes
        gone.append(len(judged.gone))
    assert gone == [0, 0, 0, 1]


def test_a_stray_runner_is_a_zombie_only_when_it_is_old() -> None:
    first = judge_sight(sight(0.0, listed=(STRAY,)), Strikes(), AGE_S)
    young = judge_sight(sight(AGE_S - 1, listed=(STRAY,)), first.strikes, AGE_S)
    old = judge_sight(sight(AGE_S, listed=(STRAY,)), young.strikes, AGE_S)
    assert (first.zombies, young.zombies, old.zombies) == ((), (), (STRAY,))


def test_a_stray_runner_of_a_machine_that_ended_long_ago_still_needs_two_lists() -> None:
    seen = replace(sight(listed=(STRAY,)), ended_s={STRAY.name: 10 * AGE_S})
    first = judge_sight(seen, Strikes(), AGE_S)
    assert (first.zombies, judge_sight(seen, first.strikes, AGE_S).zombies) == ((), (STRAY,))


@given(
    name=st.sampled_from(["nimbus-ab12-9-1", "nimbus-ffff-9-1", "nimbus-9-1", "theirs", "NIMBUS-AB12-9-1"]),
    online=st.booleans(), busy=st.booleans(), live=st.booleans(), rounds=st.integers(1, 6),
)  # fmt: skip
def test_what_is_busy_online_alive_or_not_of_our_deployment_is_never_a_zombie(
    name: str, online: bool, busy: bool, live: bool, rounds: int
) -> None:
    runner, strikes, zombies = RunnerSeen(9, name, online, busy, ()), Strikes(), 0
    for number in range(rounds):
        seen = sight(number * 10 * AGE_S, listed=(runner,))
        seen = replace(seen, live=frozenset({name.lower()} if live else ()))
        judged = judge_sight(seen, Strikes.parse(strikes.render()), AGE_S)
        strikes, zombies = judged.strikes, zombies + len(judged.zombies)
    may_go = name.lower().startswith(PREFIX) and not (online or busy or live)
    assert (zombies > 0) == (may_go and rounds >= 2)


# --- against a live sim ---------------------------------------------------------------------------------------------


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    rules = RunnerRules(sweep_s=3600.0, zombie_age_s=0.001)
    async with open_github_plane(database_dsn, redis_url, runners=rules) as running:
        yield running


async def make_ripe(github: GithubPlane) -> None:
    await github.plane.sql("UPDATE machines SET registered_at = registered_at - interval '1 day'")


@pytest.mark.services
async def test_a_machine_whose_runner_github_dropped_is_ended_and_another_takes_its_place(github: GithubPlane) -> None:
    await minted(github)
    await make_ripe(github)
    github.sim.world.forge.runners.clear()
    await look(github)
    assert await github.states() == ["leased"]
    await look(github, rounds=2)
    assert await github.states() == ["leased!", "queued"]
    [first, _] = await github.machines()
    assert (first["runner_id"], first["wasted_at"] is not None) == (None, True)


@pytest.mark.services
async def test_a_machine_whose_runner_is_listed_or_just_registered_is_left_alone(github: GithubPlane) -> None:
    await minted(github, jobs=2)
    await make_ripe(github)
    await look(github, rounds=3)
    assert await github.states() == ["leased", "leased"]
    await github.plane.sql("UPDATE machines SET registered_at = clock_timestamp()")
    github.sim.world.forge.runners.clear()
    await look(github, rounds=3)
    assert await github.states() == ["leased", "leased"]


@pytest.mark.services
async def test_a_machine_that_runs_a_job_is_ended_when_four_lists_lack_its_runner(github: GithubPlane) -> None:
    _, [grant] = await minted(github)
    await make_ripe(github)
    await github.tell("in_progress", runner_name=await github.name_of(grant), runner_id=1)
    github.sim.world.forge.runners.clear()
    await look(github, rounds=3)
    assert await github.states() == ["leased"]
    await look(github, rounds=4)
    assert await github.states() == ["leased!"]


@pytest.mark.services
async def test_a_registration_that_nobody_remembers_is_deleted_and_one_of_another_deployment_is_not(
    github: GithubPlane,
) -> None:
    _, [grant] = await minted(github)
    forge = github.sim.world.forge
    ours = (await github.name_of(grant)).replace(f"-{grant['machine_id']}-", "-4711-")
    for name in (ours, "nimbus-ffff-4711-1", "theirs"):
        forge.register("octo-org/hello", name, ("nimbus",), 1, "_work")
    await look(github)
    assert ours in registered(github)
    await look(github, rounds=2)
    assert set(registered(github)) == {await github.name_of(grant), "nimbus-ffff-4711-1", "theirs"}


@pytest.mark.services
async def test_a_stray_runner_that_is_busy_is_left_alone(github: GithubPlane) -> None:
    await minted(github)
    [runner] = registered(github).values()
    take_job(github, runner)
    runner.online = False  # it lost its network for a while
    await github.plane.sql("UPDATE machines SET state = 'lost', deadline = NULL, runner_id = NULL, finished_at = now()")
    await look(github, rounds=3)
    assert list(registered(github)) == [runner.name]


@pytest.mark.services
async def test_one_organisations_refusal_keeps_no_other_from_being_looked_after(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued", 1)
    await github.mint(agent, await github.lease(agent))
    await github.tell("queued", 2, repo={"id": 602, "name": "web", "full_name": "octo-org/web", "private": True})
    await github.mint(agent, await github.lease(agent))
    await make_ripe(github)
    states = {"owner": "octo-org", "repo": "hello", "states": ["no_permission"]}
    assert (await github.sim.http.post("/sim/account", json=states)).status_code == 200
    github.sim.world.forge.runners.clear()
    await look(github, rounds=3)
    assert await github.states() == ["leased", "leased!", "queued"]
    [problem] = await github.plane.sql("SELECT * FROM forge_problems")
    assert (problem["scope"], problem["kind"]) == ("hello", "no_permission")


@pytest.mark.services
async def test_scopes_without_machines_cost_no_call(github: GithubPlane) -> None:
    await leased(github)
    await look(github, rounds=3)
    stats = (await github.sim.http.get("/sim/stats")).json()
    assert sum(each["reads"] for each in stats["installations"]) == 0


@pytest.mark.services
async def test_finding_the_scopes_reads_few_machines_however_long_their_history(github: GithubPlane) -> None:
    await minted(github)
    await github.plane.sql(
        "INSERT INTO machines (org_id, repo_id, kind, labels, shape, image, state, runner_name, finished_at) "
        "SELECT org_id, repo_id, kind, labels, shape, image, 'done', 'nimbus-ab12-' || n, now() - interval '7 days' "
        "FROM machines, generate_series(1, 20000) n"
    )
    await github.plane.sql("ANALYZE")
    plan = await explain(github.plane, ("nimbus.control_plane", "queries", "roster.sql"), "scopes", 21600.0)
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans(plan, "machines")) < 100
    assert "Seq Scan" not in {node["Node Type"] for node in scans(plan, "machines")}
