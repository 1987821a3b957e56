"""What a job that waits says of itself: the first reason that applies, and who must act."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from nimbus.control_plane.jobs.waiting import Host, WaitCode, judge_wait
from nimbus.control_plane.services import JobRules
from nimbus.model.forge import ProblemKind
from tests.unit.control_plane.github_plane import GithubPlane, job_event, open_github_plane

SMALL = Host("x64", frozenset({"nimbus"}), 4, 8192)
FACTS: dict[str, Any] = {
    "state": "queued", "limited_until": None, "paused_until": None, "held_back": False, "reserved_for": None,
    "ahead": 2, "refusal": None, "given_up": False, "login": "octo-org",
    "unserved": False, "problem": None, "problem_scope": None, "retry_at": None, "max_machines": None, "max_cpus": None,
    "held_machines": 0, "held_cpus": 0, "alias": None, "alias_max": None, "alias_held": None,
    "machine_state": "queued", "machine_kind": "runner", "arch": "x64", "host_labels": ["nimbus"],
    "shape": {"cpus": 2, "mem_mib": 4096, "disk_mib": 2048}, "wasted": 0, "robbed_jobs": 1, "place": 3, "length": 7,
}  # fmt: skip
NO_MACHINE = {"machine_state": None, "shape": None}


def judged(hosts: tuple[Host, ...] = (SMALL,), **facts: Any) -> str:
    return judge_wait(FACTS | facts, hosts, JobRules(stolen_limit=3)).words


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"state": "waiting"}, "a reviewer named there must approve it on GitHub"),
        ({"refusal": "nimbus-4cpus is no size"}, "its workflow, who must change its labels: nimbus-4cpus is no size"),
        ({"given_up": True}, "its author must run it again"),
        ({"problem": "suspended", "problem_scope": ""}, "an owner of octo-org must unsuspend it"),
        (
            {"problem": "actions_disabled", "problem_scope": "hello"},
            "an administrator of octo-org/hello must enable it",
        ),
        ({"unserved": True}, "the GitHub App is not installed on octo-org: an owner of octo-org must install it"),
        ({"max_machines": 5, "held_machines": 5}, "octo-org has 5 machines of the 5 that it may have"),
        ({"max_cpus": 5, "held_cpus": 4}, "uses 4 of its 5 CPUs, and this needs 2: it goes on when one ends"),
        ({"max_machines": 0}, "the operator: octo-org may have no machine now"),
        ({"max_cpus": 1}, "it needs 2 CPUs and octo-org may use 1 in all, so its labels must ask for fewer or"),
        ({"alias": "big", "alias_max": 0}, "the operator: octo-org may have no machine for label big"),
        ({"alias": "big", "alias_max": 1, "alias_held": 1}, "1 machines of the 1 for label big"),
        ({**NO_MACHINE, "wasted": 4}, "whose jobs took 4 runners of its labels within an hour"),
        ({**NO_MACHINE, "wasted": 3}, "a machine is asked for soon"),
        ({"machine_state": "leased"}, "its machine is starting"),
        ({"machine_state": "running"}, "GitHub, which has a runner for it"),
        ({"host_labels": ["gpu", "nimbus"]}, "no x64 host offers gpu (NIMBUS_JOB_LABELS of its agent)"),
        ({"arch": "arm64"}, "the operator: no host here is arm64"),
        ({"shape": {"cpus": 8, "mem_mib": 512, "disk_mib": 512}}, "has 8 CPUs and 512 MiB of memory"),
        ({}, "a free host: place 3 of 7 in the queue of octo-org"),
    ],
)
def test_the_sentence_names_who_must_act(facts: dict[str, Any], told: str) -> None:
    assert told in judged(**facts)


AT = datetime(2026, 11, 21, 13, 5, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("facts", "code", "told"),
    [
        (
            {**NO_MACHINE, "limited_until": AT},
            WaitCode.RATE_LIMIT,
            "octo-org asks for more than 100 jobs in 60 s: its turn comes at 13:05:09 UTC",
        ),
        ({"paused_until": AT}, WaitCode.PAUSED, "nobody: nothing is granted until 13:05:09 UTC, because"),
        ({"ahead": 14}, WaitCode.TURN, "place 3 of 7 in the queue of octo-org, and 12 of other organisations go first"),
        ({"ahead": 1}, WaitCode.TURN, "a free host: place 3 of 7 in the queue of octo-org"),
        ({"reserved_for": "host-3"}, WaitCode.MAKING_ROOM, "room on host host-3, which takes nothing else until"),
        (
            {"held_back": True, "max_machines": 5, "held_machines": 3},
            WaitCode.CAP,
            "octo-org will hold all that it may before its turn: place 3 of 7 in the queue of octo-org; it goes on",
        ),
        ({"max_machines": 0, "paused_until": AT}, WaitCode.BARRED, "the operator"),
    ],
)
def test_what_the_scheduler_does_has_a_code_and_its_words(facts: dict[str, Any], code: WaitCode, told: str) -> None:
    wait = judge_wait(FACTS | facts, [SMALL], JobRules())
    assert (wait.code, told in wait.words) == (code, True), wait.words


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ((True, False), "every host that may take it is cordoned or drains: one must be given back"),
        ((False, True), "every host that may take it runs a release that is too old (NIMBUS_AGENT_MIN_VERSION)"),
    ],
)
def test_hosts_that_would_do_and_are_granted_nothing_are_told_of(held: tuple[bool, bool], told: str) -> None:
    host = replace(SMALL, held=held[0], barred=held[1])
    small = Host("x64", frozenset({"nimbus"}), 1, 512)  # works, and is no help
    wait = judge_wait(FACTS, [host, small], JobRules())
    assert (wait.code, told in wait.words) == (WaitCode.HOSTS_HELD, True), wait.words
    both = judge_wait(FACTS, [replace(SMALL, held=True), replace(SMALL, barred=True)], JobRules())
    assert "is cordoned or drains or runs a release that is too old" in both.words
    assert judge_wait(FACTS, [host, SMALL], JobRules()).code is WaitCode.TURN


def test_without_any_host_the_operator_must_start_one() -> None:
    assert "the operator: no host has been heard of" in judged(hosts=())


def test_an_agent_without_labels_takes_any_and_one_that_never_asked_is_not_held_against_a_job() -> None:
    for labels in (frozenset[str](), None):
        assert "free host" in judged(hosts=(Host("x64", labels, 4, 8192),), host_labels=["gpu"])


def test_a_command_runs_on_any_host_of_its_architecture() -> None:
    assert "free host" in judged(host_labels=["gpu"], machine_kind="command")


def test_a_problem_says_when_it_is_tried_again() -> None:
    at = datetime(2026, 11, 21, 13, 5, 9, tzinfo=UTC)
    told = judged(problem="rate_limit", problem_scope="", retry_at=at)
    assert told.endswith("(tried again at 13:05:09 UTC)")
    assert "nobody must act" in told


@pytest.mark.parametrize("kind", ProblemKind)
def test_every_kind_of_problem_has_its_words(kind: ProblemKind) -> None:
    assert "act" in judged(problem=kind, problem_scope="") or "must" in judged(problem=kind, problem_scope="")


# --- as the API tells it ------------------------------------------------------------------------------------------


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


async def waits(github: GithubPlane) -> list[str | None]:
    """What each job is said to wait for, oldest first."""
    reply = await github.plane.http.get("/api/jobs/recent", headers=github.plane.admin())
    return [job["waits_for"] for job in reversed(reply.json()["jobs"])]


async def offer(github: GithubPlane, *labels: str) -> dict[str, str]:
    """An agent that has asked for work once, with no room for any."""
    agent = await github.plane.enrol()
    body = {"wait_s": 0, "free": {"cpus": 0, "mem_mib": 0, "slots": 1}, "labels": list(labels)}
    assert (await github.plane.http.post("/api/agents/lease", json=body, headers=agent)).status_code == 204
    return agent


@pytest.mark.services
async def test_each_of_several_jobs_says_where_it_stands(github: GithubPlane) -> None:
    agent = await offer(github, "nimbus")
    for job_id in (1, 2, 3):
        await github.tell("queued", job_id)
    await github.tell("queued", 4, labels=["nimbus-4cpus"])
    await github.tell("queued", 5, status="waiting")
    await github.tell("completed", 6, conclusion="success")
    await github.lease(agent)
    first, second, third, fourth, fifth, sixth = await waits(github)
    assert first == "nobody: its machine is starting"
    assert second == "a free host: place 1 of 2 in the queue of octo-org"
    assert third == "a free host: place 2 of 2 in the queue of octo-org"
    assert fourth is not None
    assert "nimbus-4cpus is no size" in fourth
    assert fifth is not None
    assert "approve it" in fifth
    assert sixth is None


@pytest.mark.services
async def test_a_job_that_no_host_would_take_says_what_is_missing(github: GithubPlane) -> None:
    await github.tell("queued", 1, labels=["nimbus", "gpu"])
    assert await waits(github) == [
        "the operator: no host has been heard of lately, so one must be started (nimbus agent run)"
    ]
    await offer(github, "nimbus")
    assert await waits(github) == ["the operator: no x64 host offers gpu (NIMBUS_JOB_LABELS of its agent)"]
    await offer(github, "nimbus", "gpu")
    assert await waits(github) == ["a free host: place 1 of 1 in the queue of octo-org"]


@pytest.mark.services
async def test_what_github_refuses_is_told_on_the_jobs_of_its_installation_and_repository_alone(
    github: GithubPlane,
) -> None:
    await offer(github, "nimbus")
    await github.tell("queued", 1)
    await github.tell("queued", 2, repo={"id": 602, "name": "other", "full_name": "octo-org/other", "private": True})
    await github.plane.sql(
        "INSERT INTO forge_problems (installation_id, scope, task, kind, said, retry_at) VALUES "
        "(77, 'hello', 'register', 'runners_disabled', 'a secret word of theirs', now() + interval '1 hour'),"
        "(77, 'other', 'read', 'no_permission', 'x', now() + interval '1 hour')"
    )
    first, second = await waits(github)
    assert first is not None
    assert first.startswith("self-hosted runners are disabled for octo-org/hello: an administrator of octo-org must")
    assert "tried again at" in first
    assert second == "a free host: place 2 of 2 in the queue of octo-org"


@pytest.mark.services
async def test_a_job_of_a_hook_without_an_installation_asks_for_the_app(github: GithubPlane) -> None:
    await github.deliver(job_event("queued") | {"installation": None})
    await github.drain()
    [told] = await waits(github)
    assert told is not None
    assert "an owner of octo-org must install it" in told


@pytest.mark.services
async def test_a_job_that_its_orgs_budget_keeps_says_so_and_leaves_the_machine_to_the_next(github: GithubPlane) -> None:
    await offer(github, "nimbus")
    await github.tell("queued", 1)
    await github.tell("queued", 2)
    await github.plane.sql("UPDATE jobs SET limited_until = now() + interval '1 hour' WHERE forge_job_id = 1")
    await github.plane.sql("UPDATE machines SET state = 'cancelled' WHERE machine_id = 2")
    kept, next_ = await waits(github)
    assert kept is not None
    assert kept.startswith("octo-org asks for more than 1000 jobs in 60 s: its turn comes at ")
    assert next_ == "a free host: place 1 of 1 in the queue of octo-org"


@pytest.mark.services
async def test_a_command_of_our_api_says_what_it_waits_for_and_a_machine_of_another_org_does_not_show(
    github: GithubPlane,
) -> None:
    await offer(github, "nimbus")
    await github.tell("queued", 1)
    job = await github.plane.submit()
    told = (await github.plane.job(job["job_id"]))["waits_for"]
    assert told == "a free host: place 1 of 1 in the queue of local, and 1 of other organisations go first"
    await github.plane.sql("UPDATE orgs SET max_cpus = 0 WHERE login = 'local'")
    told = (await github.plane.job(job["job_id"]))["waits_for"]
    assert told.startswith("its author or the operator: it needs 1 CPUs and local may use 0 in all")
    assert "octo" not in told
