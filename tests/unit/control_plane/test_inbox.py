"""The inbox on a real PostgreSQL: each delivery is processed once, whatever fails or dies, and forgotten later."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import trio

from nimbus.control_plane.demand.inbox import (
    AT_ONCE,
    FORGET_BATCH,
    MAX_ATTEMPTS,
    InboxRules,
    drain_inbox,
    forget_deliveries,
    measure_inbox,
    process_delivery,
    serve_inbox,
)
from nimbus.control_plane.demand.intake import Arrival, DeliveryState, Intake, Stored
from nimbus.model.errors import Unavailable
from tests.unit.control_plane.github_plane import GithubPlane, job_event, open_github_plane

pytestmark = pytest.mark.services
GUID = "72d3162e-cc78-11e3-81ab-4c9367dc0958"


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


async def break_jobs(github: GithubPlane) -> None:
    """Make the database refuse every job, as a full disk or a bad migration would."""
    await github.plane.sql("ALTER TABLE jobs ADD CONSTRAINT broken CHECK (false) NOT VALID")


async def mend_jobs(github: GithubPlane) -> None:
    await github.plane.sql("ALTER TABLE jobs DROP CONSTRAINT broken")


async def make_due(github: GithubPlane) -> None:
    """Let the time until the next attempt be over, as Postgres sees it."""
    await github.plane.sql("UPDATE deliveries SET due_at = clock_timestamp()")


async def put(
    github: GithubPlane, guid: str, event: str = "workflow_job", body: object = None, age_s: float = 0
) -> None:
    """A delivery as a process left it that died right after the answer."""
    raw = json.dumps(job_event("queued") if body is None else body).encode()
    await github.plane.sql(
        "INSERT INTO deliveries (guid, event, action, body, received_at) "
        "VALUES ($1, $2, 'queued', $3, now() - make_interval(secs => $4))",
        guid, event, raw, age_s,
    )  # fmt: skip


async def test_a_delivery_whose_processing_failed_is_processed_when_github_redelivers_it(github: GithubPlane) -> None:
    await break_jobs(github)
    await github.deliver(job_event("queued"), guid=GUID)
    await github.drain()
    [row] = await github.plane.sql("SELECT state, attempts, error FROM deliveries")
    assert (row["state"], row["attempts"]) == ("failed", 1)
    assert "broken" in row["error"]
    await mend_jobs(github)
    answer = await github.deliver(job_event("queued"), guid=GUID)
    assert (answer.status_code, answer.json()["state"], answer.json()["duplicate"]) == (202, "stored", False)
    assert await github.drain() == 1
    assert await github.states() == ["queued"]
    assert github.plane.services.metrics.webhook_replays_blocked._value.get() == 0


async def test_a_failed_delivery_is_tried_again_when_it_is_due_and_not_before(github: GithubPlane) -> None:
    await break_jobs(github)
    await github.deliver(job_event("queued"), guid=GUID)
    await github.drain()
    await mend_jobs(github)
    [row] = await github.plane.sql("SELECT due_at - received_at >= interval '5 s' AS later FROM deliveries")
    assert row["later"]
    await github.plane.sql("UPDATE deliveries SET due_at = due_at + interval '1 hour'")  # this machine may be slow
    assert await github.drain() == 0
    await make_due(github)
    assert await github.drain() == 1
    assert await github.states() == ["queued"]


async def test_a_delivery_that_always_fails_is_tried_later_and_later_and_then_given_up(github: GithubPlane) -> None:
    await break_jobs(github)
    await github.deliver(job_event("queued"), guid=GUID)
    waits = []
    for _ in range(MAX_ATTEMPTS):
        await github.drain()
        [row] = await github.plane.sql(
            "SELECT extract(epoch FROM due_at - clock_timestamp()) AS wait_s FROM deliveries"
        )
        waits.append(row["wait_s"])
        await make_due(github)
    assert waits == sorted(waits)
    assert await github.drain() == 0
    [row] = await github.plane.sql("SELECT state, attempts, error FROM deliveries")
    assert (row["state"], row["attempts"]) == ("failed", MAX_ATTEMPTS)
    assert "broken" in row["error"]


async def test_a_delivery_that_always_fails_does_not_keep_the_others_back(github: GithubPlane) -> None:
    await break_jobs(github)
    await put(github, "first-guid", age_s=60)
    await put(github, "later-guid", body=job_event("queued", labels=["ubuntu-latest"]), age_s=30)
    assert await github.drain() == 2
    assert await github.delivery_states() == ["failed", "ignored"]


async def test_a_stored_delivery_whose_process_died_is_processed_after_all(github: GithubPlane) -> None:
    await put(github, GUID, age_s=60)
    assert await github.drain() == 1
    assert await github.states() == ["queued"]


async def test_a_delivery_in_whose_midst_a_process_died_is_processed_when_its_claim_ends(github: GithubPlane) -> None:
    await put(github, GUID)
    await github.plane.sql("UPDATE deliveries SET attempts = 1, due_at = clock_timestamp() + interval '20 s'")
    assert await github.drain() == 0
    await make_due(github)
    assert await github.drain() == 1
    assert await github.states() == ["queued"]


async def test_a_delivery_that_ends_each_process_is_given_up_by_name(github: GithubPlane) -> None:
    await put(github, GUID)
    await github.plane.sql("UPDATE deliveries SET attempts = $1", MAX_ATTEMPTS)
    assert await github.drain() == 0
    await forget_deliveries(github.plane.services, InboxRules())
    [row] = await github.plane.sql("SELECT state, error FROM deliveries")
    assert row["state"] == "failed"
    assert "process ended" in row["error"]


async def test_two_processes_share_the_inbox_and_process_each_delivery_once(github: GithubPlane) -> None:
    for number in range(30):
        await put(github, f"delivery-{number}", body=job_event("queued", number + 1))
    services, rules = github.plane.services, github.forge.demand
    drained: list[int] = []

    async def drain() -> None:
        drained.append(await drain_inbox(services, rules))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        nursery.start_soon(drain)
    assert sum(drained) == 30
    assert len(await github.jobs()) == 30
    assert {row["attempts"] for row in await github.plane.sql("SELECT attempts FROM deliveries")} == {1}


async def test_a_delivery_that_another_has_settled_meanwhile_is_left_alone(github: GithubPlane) -> None:
    await put(github, GUID)
    services, rules = github.plane.services, github.forge.demand
    first = await process_delivery(services, GUID, rules)
    second = await process_delivery(services, GUID, rules)
    assert (first.state, first.again) == (DeliveryState.PROCESSED, False)
    assert (second.state, second.again) == (DeliveryState.PROCESSED, True)


async def test_what_is_stored_is_processed_at_once_by_itself(github: GithubPlane) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_inbox, github.plane.services, github.forge.demand)
        await github.deliver(job_event("queued"))
        with trio.fail_after(30):
            while await github.delivery_states() != ["processed"]:  # noqa: ASYNC110 - a row tells nobody
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_what_was_claimed_and_not_begun_is_given_back_when_the_process_is_told_to_stop(
    github: GithubPlane,
) -> None:
    services = github.plane.services
    for number in range(10):
        await put(github, f"delivery-{number}", body=job_event("queued", number + 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_inbox, services, github.forge.demand)
        with trio.fail_after(30):
            while not await github.plane.sql("SELECT FROM deliveries WHERE attempts > 0"):  # noqa: ASYNC110 - the same
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    held = await github.plane.sql("SELECT guid FROM deliveries WHERE attempts > 0 AND state = 'received'")
    assert len(held) <= AT_ONCE


async def test_what_was_redelivered_because_we_asked_is_learned_by_redelivery(github: GithubPlane) -> None:
    await github.plane.sql("INSERT INTO redeliveries (guid) VALUES ($1)", GUID)
    await github.deliver(job_event("queued"), guid=GUID)
    await github.drain()
    [job] = await github.jobs()
    assert job["learned_by"] == "redelivery"


def installation_event(action: str, **installation: object) -> dict[str, object]:
    account = {"id": 501, "login": "octo-org"}
    return {"action": action, "installation": {"id": 99, "account": account, "suspended_at": None} | installation}


async def tell_installation(github: GithubPlane, action: str, event: str = "installation", **more: object) -> None:
    answer = await github.deliver(installation_event(action, **more), event=event)
    assert answer.status_code == 202, answer.text
    await github.drain()


async def test_an_installation_is_known_from_its_first_event_to_its_last(github: GithubPlane) -> None:
    told = []
    for action in ("created", "suspend", "unsuspend", "deleted"):
        await tell_installation(github, action)
        [row] = await github.plane.sql("SELECT suspended, removed FROM installations WHERE installation_id = 99")
        problems = await github.plane.sql("SELECT kind FROM forge_problems WHERE installation_id = 99")
        told.append((row["suspended"], row["removed"], [problem["kind"] for problem in problems]))
    assert told == [
        (False, False, []), (True, False, ["suspended"]), (False, False, []), (False, True, ["not_installed"]),
    ]  # fmt: skip
    assert await github.delivery_states() == ["processed"] * 4


@pytest.mark.parametrize(
    ("event", "action"),
    [("installation", "new_permissions_accepted"), ("installation_repositories", "added")],
)
async def test_what_lacked_is_asked_again_at_once_when_an_owner_acted(
    github: GithubPlane, event: str, action: str
) -> None:
    await tell_installation(github, "created")
    await github.plane.sql(
        "INSERT INTO forge_problems (installation_id, scope, task, kind, said, retry_at) "
        "VALUES (99, 'hello', 'register', 'no_permission', 'no', clock_timestamp() + interval '1 hour')"
    )
    await tell_installation(github, action, event=event)
    [row] = await github.plane.sql("SELECT retry_at <= clock_timestamp() AS now FROM forge_problems")
    assert row["now"]


@pytest.mark.parametrize("broken", [{"id": None}, {"account": None}, {"account": {"id": 1}}])
async def test_an_installation_event_that_names_nobody_is_refused(
    github: GithubPlane, broken: dict[str, object]
) -> None:
    answer = await github.deliver(installation_event("created", **broken), event="installation")
    assert answer.status_code == 400
    assert await github.delivery_states() == []


async def test_settled_deliveries_are_forgotten_after_their_time_and_no_other(github: GithubPlane) -> None:
    day = 86400.0
    for guid, state, age in [
        ("old-processed", "processed", 8 * day), ("old-ignored", "ignored", 8 * day),
        ("new-processed", "processed", day), ("old-failed", "failed", 8 * day),
        ("older-failed", "failed", 31 * day), ("old-received", "received", 31 * day),
    ]:  # fmt: skip
        await put(github, guid, age_s=age)
        attempts = 0 if state == "received" else MAX_ATTEMPTS
        await github.plane.sql("UPDATE deliveries SET state = $2, attempts = $3 WHERE guid = $1", guid, state, attempts)
    assert await forget_deliveries(github.plane.services, InboxRules(retention_s=7 * day)) == 3
    left = {row["guid"] for row in await github.plane.sql("SELECT guid FROM deliveries")}
    assert left == {"new-processed", "old-failed", "old-received"}


async def test_more_than_one_batch_is_forgotten_in_one_sweep(github: GithubPlane) -> None:
    await github.plane.sql(
        "INSERT INTO deliveries (guid, event, body, state, received_at) "
        "SELECT 'old-' || n, 'workflow_job', '', 'processed', now() - interval '8 days' FROM generate_series(1, $1) n",
        FORGET_BATCH + 1,
    )
    assert await forget_deliveries(github.plane.services, InboxRules()) == FORGET_BATCH + 1


async def test_the_metrics_show_what_waits_and_for_how_long(github: GithubPlane) -> None:
    await put(github, "waits", age_s=100)
    await put(github, "failed", age_s=500)
    await github.plane.sql("UPDATE deliveries SET state = 'failed', attempts = $1 WHERE guid = 'failed'", MAX_ATTEMPTS)
    await measure_inbox(github.plane.services)
    read = github.plane.services.metrics.registry.get_sample_value
    assert read("nimbus_control_plane_deliveries_unfinished", {"state": "received"}) == 1
    assert read("nimbus_control_plane_deliveries_unfinished", {"state": "failed"}) == 1
    assert 100 <= (read("nimbus_control_plane_delivery_oldest_seconds") or 0) < 400


# --- the way in ---------------------------------------------------------------------------------------------------


def arrival(guid: str, body: bytes = b"{}", event: str = "workflow_job") -> Arrival:
    return Arrival(guid, event, "queued", body, None)


async def store_together(intake: Intake, arrivals: list[Arrival]) -> dict[int, Stored | Exception]:
    """Store them by callers that all wait before a group is taken; what each got."""
    got: dict[int, Stored | Exception] = {}

    async def store(number: int, each: Arrival) -> None:
        try:
            got[number] = await intake.store(each)
        except Exception as error:  # noqa: BLE001 -- the test looks at it
            got[number] = error

    async with trio.open_nursery() as nursery:
        for number, each in enumerate(arrivals):
            nursery.start_soon(store, number, each)
    return got


async def test_deliveries_that_arrive_together_share_commits_and_each_gets_its_own_answer(github: GithubPlane) -> None:
    before = await transactions(github)
    arrivals = [arrival(f"delivery-{number % 90}", str(number).encode()) for number in range(100)]
    got = await store_together(github.forge.intake, arrivals)
    assert sum(isinstance(each, Stored) and not each.again for each in got.values()) == 90
    assert sum(isinstance(each, Stored) and each.again for each in got.values()) == 10
    assert len(await github.delivery_states()) == 90
    assert await transactions(github) - before < 30


async def transactions(github: GithubPlane) -> int:
    [row] = await github.plane.sql("SELECT count(DISTINCT xmin::text) AS count FROM deliveries")
    return int(row["count"])


async def test_a_delivery_that_cannot_be_stored_does_not_take_its_neighbours_along(github: GithubPlane) -> None:
    arrivals = [arrival(f"delivery-{number}") for number in range(9)] + [arrival("bad\0guid")]
    got = await store_together(github.forge.intake, arrivals)
    assert [number for number, each in got.items() if isinstance(each, Exception)] == [9]
    assert len(await github.delivery_states()) == 9


async def test_while_the_database_is_away_each_caller_is_told_so(github: GithubPlane) -> None:
    await github.plane.sql(
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'stopping' USING ERRCODE = 'admin_shutdown'; END $$"
    )
    await github.plane.sql("CREATE TRIGGER stop BEFORE INSERT ON deliveries FOR EACH ROW EXECUTE FUNCTION stop()")
    got = await store_together(github.forge.intake, [arrival("first-guid"), arrival("second-guid")])
    assert all(isinstance(each, Unavailable) for each in got.values())
