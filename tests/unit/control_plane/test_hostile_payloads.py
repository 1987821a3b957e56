"""What tenants write into their workflows and events, as an attacker would: it costs them, and nobody else."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator

import pytest
import trio

from nimbus.control_plane.demand.webhooks import WebhookRules
from nimbus.control_plane.orgs.aliases import MAX_ALIASES
from nimbus.model.labels import Alias
from nimbus.model.vm import Shape
from nimbus.wire.github import MAX_WEBHOOK_BYTES
from tests.forge import INSTALLATION_ID
from tests.unit.control_plane.github_plane import SECRET, GithubPlane, open_github_plane
from tests.unit.control_plane.test_label_demand import give_alias
from tests.unit.control_plane.test_polling import Polled

pytestmark = pytest.mark.services


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


def label_bomb(seed: int = 7) -> list[str]:
    """As many labels, as long and as hard to compress as one job may have."""
    chance = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return ["nimbus", *("".join(chance.choices(letters, k=256)) for _ in range(99))]


async def test_a_job_with_more_labels_than_can_be_stored_is_left_alone(github: GithubPlane) -> None:
    await github.tell("queued", 1, labels=label_bomb())
    await github.tell("queued", 2, labels=label_bomb()[:7])
    assert await github.delivery_states() == ["ignored", "processed"]
    assert [job["forge_job_id"] for job in await github.jobs()] == [2]
    assert await github.states() == ["queued"]


@pytest.mark.parametrize("odd", ["x" * 300, "a\x00b"])
async def test_labels_that_no_runner_can_have_make_no_failed_delivery_that_is_asked_for_again(
    github: GithubPlane, odd: str
) -> None:
    await github.tell("queued", 1, labels=["nimbus", odd])
    assert await github.delivery_states() == ["ignored"]


async def test_an_alias_among_too_many_labels_makes_no_job_ours(github: GithubPlane) -> None:
    await give_alias(github, Alias("big", Shape()))
    await github.tell("queued", 1, labels=["big", *label_bomb()[1:]])
    assert await github.delivery_states() == ["ignored"]


async def test_a_poll_that_finds_such_a_job_goes_on_to_the_next(github: GithubPlane) -> None:
    polled = Polled(github)
    await polled.list_all()
    words = ", ".join(label_bomb())
    polled.start(f"jobs: {{a: {{runs-on: [{words}], steps: [{{run: x}}]}}}}")
    polled.start()
    await polled.poll()
    assert [job["labels"] for job in await github.jobs()] == [["nimbus"]]


async def test_a_job_that_cannot_be_recorded_is_no_other_jobs_trouble(github: GithubPlane) -> None:
    polled = Polled(github)
    await polled.list_all()
    await github.plane.sql("ALTER TABLE jobs ADD CONSTRAINT no_poison CHECK (name <> 'poison')")
    polled.start("jobs: {poison: {runs-on: nimbus, steps: [{run: x}]}, a: {runs-on: nimbus, steps: [{run: x}]}}")
    await polled.poll()
    assert [job["name"] for job in await github.jobs()] == ["a"]


# --- ids that do not fit together ---------------------------------------------------------------------------------

OTHER = {"id": 502, "login": "other-org"}
THEIRS = {"id": 602, "name": "theirs", "full_name": "other-org/theirs", "private": True}


async def test_an_event_that_names_another_orgs_installation_takes_it_from_nobody(github: GithubPlane) -> None:
    await github.tell("queued", 1)
    await github.tell("queued", 2, owner=OTHER, repo=THEIRS)
    [installation] = await github.plane.sql("SELECT login FROM installations JOIN orgs USING (org_id)")
    assert installation["login"] == "octo-org"
    assert [row["installation_id"] for row in await github.machines()] == [INSTALLATION_ID, None]
    reached = await github.plane.sql("SELECT installation_id FROM repos ORDER BY repo_id")
    assert [row["installation_id"] for row in reached] == [INSTALLATION_ID, None]


async def test_a_repositorys_runner_is_not_taken_by_another_repository_that_gave_one_its_name(
    github: GithubPlane,
) -> None:
    """Whoever may register a runner of a repository's own gives it any name."""
    await github.tell("queued", 1)
    agent = await github.plane.enrol()
    grant = await github.lease(agent)
    assert (await github.mint(agent, grant)).status_code == 200
    named = {"runner_id": 9, "runner_name": await github.name_of(grant)}
    evil = {"id": 603, "name": "evil", "full_name": "octo-org/evil", "private": True}
    await github.tell("in_progress", 7, repo=evil, labels=["theirs"], **named)
    assert [row["job_id"] for row in await github.machines()] == [None]
    assert [job["forge_job_id"] for job in await github.jobs()] == [1]
    await github.tell("in_progress", 1, **named)
    [job] = await github.jobs()
    assert [row["job_id"] for row in await github.machines()] == [job["job_id"]]


# --- bodies of strangers ------------------------------------------------------------------------------------------


async def test_so_many_large_bodies_are_held_at_once_and_small_ones_wait_for_none(
    database_dsn: str, redis_url: str
) -> None:
    rules = WebhookRules((SECRET,), large_at_once=1)
    async with open_github_plane(database_dsn, redis_url, webhooks=rules) as github:
        address = github.plane.http.base_url
        head = f"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_WEBHOOK_BYTES}\r\n\r\n"
        stranger = await trio.open_tcp_stream(address.host, address.port or 80)
        answered = trio.Event()

        async def deliver_large() -> None:
            large = json.dumps({"zen": "x" * 2_000_000}).encode()
            assert (await github.deliver(large, event="ping")).status_code == 202
            answered.set()

        async with stranger, trio.open_nursery() as nursery:
            await stranger.send_all(head.encode() + b"x" * (MAX_WEBHOOK_BYTES // 2))  # more than all buffers on the way
            nursery.start_soon(deliver_large)
            await github.tell("queued", 1)
            with trio.move_on_after(0.5):
                await answered.wait()
            assert not answered.is_set()
            await stranger.aclose()
            await answered.wait()


# --- what a tenant's own token may do -----------------------------------------------------------------------------


async def test_an_org_has_so_many_labels_and_no_more_and_may_still_change_them(github: GithubPlane) -> None:
    """Each grant of any org's machine counts those of them that have a cap."""
    org_id = await give_alias(github, Alias("big", Shape()))
    await github.plane.sql(
        "INSERT INTO label_aliases (org_id, alias, shape)"
        " SELECT $1, format('big-%s', n), shape FROM label_aliases, generate_series(2, $2::integer) n",
        org_id,
        MAX_ALIASES,
    )
    headers = github.plane.admin(org_id=org_id)
    wanted = {"cpus": 2, "mem_mib": 512}
    answer = await github.plane.http.put("/api/orgs/octo-org/labels/more", json=wanted, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
    assert str(MAX_ALIASES) in answer.text
    answer = await github.plane.http.put("/api/orgs/octo-org/labels/big", json=wanted, headers=headers)
    assert (answer.status_code, answer.json()["cpus"]) == (200, 2)
