"""How a call gets to GitHub and back: limits, outages, pages, other hosts, and no secret in any message."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from nimbus.control_plane.github.breaker import FAILURES
from nimbus.control_plane.github.client import GithubClient, RunnerScope
from nimbus.control_plane.github.limits import LimitTerms
from nimbus.control_plane.github.transport import WAYS
from nimbus.model.forge import ForgeTrouble, ProblemKind
from tests.forge import INSTALLATION_ID, app_key
from tests.unit.control_plane.github_server import TOKEN, Reply, Scripted, open_client, open_scripted

SCOPE = RunnerScope(INSTALLATION_ID, "octo-org", "hello")
ORG = RunnerScope(INSTALLATION_ID, "octo-org", None)
RUNNERS = "/repos/octo-org/hello/actions/runners"
MINT = f"{RUNNERS}/generate-jitconfig"
NO_RUNNERS = {"total_count": 0, "runners": []}


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    async with open_scripted() as running:
        yield running


@pytest.mark.parametrize(
    ("reply", "kind", "wait_s"),
    [
        (Reply(403, {}, {"Retry-After": "17"}), ProblemKind.SECONDARY_LIMIT, 17.0),
        (Reply(429, {}, {"Retry-After": "23"}), ProblemKind.SECONDARY_LIMIT, 23.0),
        (Reply(429), ProblemKind.SECONDARY_LIMIT, 60.0),
        (Reply(403, {"message": "Your IP address is not permitted"}), ProblemKind.IP_ALLOW_LIST, 300.0),
        (Reply(502, b"<html>"), ProblemKind.OUTAGE, 5.0),
        (Reply(503, b"", {"Retry-After": "9"}), ProblemKind.OUTAGE, 9.0),
        (Reply(200, b"<html>"), ProblemKind.OUTAGE, 5.0),
        (Reply(301, {}, {"Location": "https://elsewhere.example/"}), ProblemKind.REFUSED, 60.0),
        (Reply(422, {"message": "Validation Failed"}), ProblemKind.REFUSED, 60.0),
        (Reply(201, {"runner": {"id": "7"}, "encoded_jit_config": "x"}), ProblemKind.OUTAGE, 5.0),
        (Reply(201, {"runner": {"id": 7}}), ProblemKind.OUTAGE, 5.0),
    ],
)
async def test_odd_answers_become_problems_that_say_how_long_to_wait(
    scripted: Scripted, reply: Reply, kind: ProblemKind, wait_s: float
) -> None:
    scripted.server.on("POST", MINT, reply)
    with pytest.raises(ForgeTrouble) as caught:
        await scripted.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
    assert caught.value.problem.kind is kind
    # of a silence some seconds are over, and some more were added for our other processes
    slack_s = 10.0 if kind is ProblemKind.SECONDARY_LIMIT else 0.0
    assert caught.value.retry_after_s == pytest.approx(wait_s, abs=slack_s)
    assert scripted.server.routes() == [f"POST {MINT}"], "a write is never sent twice"


async def test_after_slow_down_nobody_calls_that_installation_and_others_do(scripted: Scripted) -> None:
    scripted.server.on("GET", RUNNERS, Reply(403, {"message": "You have exceeded a secondary rate limit"}))
    scripted.server.on("GET", "/repos/other/hello/actions/runners", Reply(200, NO_RUNNERS))
    with pytest.raises(ForgeTrouble):
        await scripted.client.list_runners(SCOPE)
    asked = len(scripted.server.asked)
    with pytest.raises(ForgeTrouble, match="secondary rate limit") as caught:
        await scripted.client.mint_runner(ORG, "nimbus-1-1", ("nimbus",), 1)
    assert 50 < caught.value.retry_after_s <= 66
    assert len(scripted.server.asked) == asked
    assert await scripted.client.list_runners(RunnerScope(2, "other", "hello")) == ()


async def test_a_short_slow_down_is_waited_for_and_even_a_write_is_made_then(scripted: Scripted) -> None:
    minted = Reply(201, {"runner": {"id": 7}, "encoded_jit_config": "c2VjcmV0"})
    scripted.server.on("POST", MINT, Reply(429, {}, {"Retry-After": "1"}), minted)
    assert (await scripted.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)).runner_id == 7
    assert scripted.server.routes() == [f"POST {MINT}", "GET /rate_limit", f"POST {MINT}"]


async def test_any_answer_but_a_limit_ends_the_trial_after_a_silence(scripted: Scripted) -> None:
    gate = trio.Event()
    slow_down = Reply(429, {}, {"Retry-After": "1"})
    scripted.server.on("GET", RUNNERS, slow_down, Reply(404), Reply(200, NO_RUNNERS, until=gate))
    with pytest.raises(ForgeTrouble):
        await scripted.client.list_runners(SCOPE)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(scripted.client.find_runner, SCOPE, f"nimbus-{number}-1")
        await scripted.server.wait_inside(5)
        gate.set()


async def test_many_installations_at_once_wait_for_a_connection_and_none_of_them_fails(scripted: Scripted) -> None:
    gate = trio.Event()
    asked = [RunnerScope(number, f"org-{number}", None) for number in range(1, 13)]
    for scope in asked:
        scripted.server.on("GET", scope.path, Reply(200, NO_RUNNERS, until=gate))
    async with trio.open_nursery() as nursery:
        for scope in asked:
            for number in range(15):
                nursery.start_soon(scripted.client.find_runner, scope, f"nimbus-{number}-1")
        await scripted.server.wait_inside(WAYS)
        gate.set()
    assert scripted.server.most == WAYS
    assert scripted.counts.refusals == []


async def test_a_read_is_tried_again_after_an_outage(scripted: Scripted) -> None:
    scripted.server.on("GET", RUNNERS, Reply(502), Reply(503), Reply(200, NO_RUNNERS))
    assert await scripted.client.list_runners(SCOPE) == ()
    assert scripted.counts.calls[1:] == [("runners", "502"), ("runners", "503"), ("runners", "200")]
    assert scripted.counts.refusals == []


async def list_in_the_end(client: GithubClient) -> None:
    """As a sweeper does it: what fails is asked for again when it may be."""
    while True:
        try:
            await client.list_runners(SCOPE)
        except ForgeTrouble as trouble:
            await trio.sleep(min(trouble.retry_after_s, 1.0))
        else:
            return


async def test_an_outage_opens_the_breaker_and_the_first_answer_closes_it(scripted: Scripted) -> None:
    scripted.server.on("GET", RUNNERS, *[Reply(500)] * FAILURES, Reply(200, NO_RUNNERS))
    await list_in_the_end(scripted.client)
    assert scripted.counts.breaker == [True, False]
    assert len(scripted.server.routes()) == FAILURES + 1
    assert set(scripted.counts.refusals) == {ProblemKind.OUTAGE}


async def test_after_an_outage_a_read_goes_ahead_of_every_write(scripted: Scripted) -> None:
    minted = Reply(201, {"runner": {"id": 7}, "encoded_jit_config": "c2VjcmV0"})
    scripted.server.on("POST", MINT, Reply(502), minted)
    scripted.server.on("GET", "/rate_limit", *[Reply(502)] * 3, Reply(200, {"resources": {}}))
    for _ in range(2):
        with pytest.raises(ForgeTrouble):
            await scripted.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
    assert scripted.server.routes() == [f"POST {MINT}", *["GET /rate_limit"] * 3], "a write's effect would be in doubt"
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(scripted.client.mint_runner, SCOPE, f"nimbus-{number}-1", ("nimbus",), 1)
    assert scripted.server.routes()[4:] == ["GET /rate_limit", *[f"POST {MINT}"] * 5], "one read is enough for all"


async def test_an_outage_that_many_calls_meet_at_once_is_told_once(scripted: Scripted) -> None:
    gate = trio.Event()
    scripted.server.on("POST", MINT, Reply(502, until=gate))

    async def mint(number: int) -> None:
        with pytest.raises(ForgeTrouble):
            await scripted.client.mint_runner(SCOPE, f"nimbus-{number}-1", ("nimbus",), 1)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(mint, number)
        await scripted.server.wait_inside(10)
        gate.set()
    assert scripted.counts.breaker == [True]
    assert scripted.counts.refusals == [ProblemKind.OUTAGE] * 10


async def test_a_probe_that_is_cancelled_leaves_the_next_one_free(scripted: Scripted) -> None:
    never = trio.Event()
    probed = Reply(200, NO_RUNNERS, until=never)
    scripted.server.on("GET", RUNNERS, *[Reply(500)] * FAILURES, probed, Reply(200, NO_RUNNERS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(list_in_the_end, scripted.client)
        await scripted.server.wait_inside(1)
        nursery.cancel_scope.cancel()
    assert scripted.counts.breaker == [True]
    await scripted.client.list_runners(SCOPE)
    assert scripted.counts.breaker == [True, False]
    never.set()


async def test_pages_are_followed_to_the_end(scripted: Scripted) -> None:
    def page(number: int, following: int | None) -> Reply:
        runner = {"id": number, "name": f"r{number}", "status": "online", "busy": False, "labels": []}
        link = f'<{scripted.server.url}{RUNNERS}?per_page=100&page={following}>; rel="next"' if following else ""
        return Reply(200, {"total_count": 3, "runners": [runner]}, {"Link": link, "ETag": f'"{number}"'})

    scripted.server.on("GET", RUNNERS, page(1, 2), page(2, 3), page(3, None))
    assert [runner.runner_id for runner in await scripted.client.list_runners(SCOPE)] == [1, 2, 3]
    assert scripted.server.routes()[1:] == [f"GET {RUNNERS}?per_page=100&page={number}" for number in (2, 3)]


async def test_a_page_that_has_not_changed_is_kept(scripted: Scripted) -> None:
    runner = {"id": 7, "name": "r7", "status": "offline", "busy": False, "labels": [{"name": "nimbus"}]}
    first = Reply(200, {"total_count": 1, "runners": [runner]}, {"ETag": '"one"'})
    scripted.server.on("GET", RUNNERS, first, Reply(304, b"", {"ETag": '"one"'}))
    listed = await scripted.client.list_runners(SCOPE)
    assert await scripted.client.list_runners(SCOPE) == listed
    assert [each.headers.get("if-none-match") for each in scripted.server.asked[1:]] == [None, '"one"']


@pytest.mark.parametrize("host", ["http://elsewhere.example", "https://127.0.0.1", "http://127.0.0.1:1", "http://a@"])
async def test_no_other_host_is_followed_with_our_token(scripted: Scripted, host: str) -> None:
    target = f"{host}{RUNNERS}?page=2"
    scripted.server.on("GET", RUNNERS, Reply(200, NO_RUNNERS, {"Link": f'<{target}>; rel="next"'}))
    with pytest.raises(ForgeTrouble, match="another host"):
        await scripted.client.list_runners(SCOPE)
    scripted.server.on("GET", RUNNERS, Reply(307, {}, {"Location": target}))
    with pytest.raises(ForgeTrouble):
        await scripted.client.list_runners(SCOPE)
    assert len(scripted.server.routes()) == 2


async def test_a_renamed_repository_is_followed_on_the_same_host(scripted: Scripted) -> None:
    moved = "/repositories/601/actions/runners/generate-jitconfig"
    scripted.server.on("POST", MINT, Reply(307, {}, {"Location": f"{scripted.server.url}{moved}"}))
    scripted.server.on("POST", moved, Reply(201, {"runner": {"id": 7}, "encoded_jit_config": "x"}))
    await scripted.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
    assert [each.body for each in scripted.server.asked[1:]] == [scripted.server.asked[-1].body] * 2
    scripted.server.on("POST", moved, Reply(307, {}, {"Location": moved}))
    with pytest.raises(ForgeTrouble):  # a circle ends
        await scripted.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)


async def test_a_list_without_an_end_is_no_list(scripted: Scripted) -> None:
    again = {"Link": f'<{scripted.server.url}{RUNNERS}?page=2>; rel="next"'}
    scripted.server.on("GET", RUNNERS, Reply(200, NO_RUNNERS, again))
    with pytest.raises(ForgeTrouble, match="more than 200 pages"):
        await scripted.client.list_runners(SCOPE)


async def test_twenty_callers_of_a_suspended_installation_ask_for_one_token_and_all_hear_why(
    scripted: Scripted,
) -> None:
    path = "/app/installations/77/access_tokens"
    scripted.server.on("POST", path, Reply(403, {"message": "This installation has been suspended"}))
    heard: list[ForgeTrouble] = []

    async def mint(number: int) -> None:
        with pytest.raises(ForgeTrouble) as caught:
            await scripted.client.mint_runner(SCOPE, f"nimbus-{number}-1", ("nimbus",), 1)
        heard.append(caught.value)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(mint, number)
    assert {each.problem.kind for each in heard} == {ProblemKind.SUSPENDED}
    assert {each.retry_after_s for each in heard} == {LimitTerms().owner_retry_s}
    assert [each.target for each in scripted.server.asked] == [path]


async def test_tokens_keys_and_configs_are_in_no_message_and_no_log(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "c2VudGluZWw" * 20
    told: list[str] = []
    for status in (403, 404, 422, 429, 500, 401, 201):
        echo = {
            "message": f"you sent {TOKEN}1 and {app_key().private_pem}",
            "errors": [config],
            "encoded_jit_config": config,
        }
        scripted.server.on("POST", MINT, Reply(status, echo, {"Retry-After": "0"} if status == 429 else {}))
        async with open_client(scripted.server.url) as client:
            with pytest.raises(ForgeTrouble) as caught:
                await client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
            told += [str(caught.value), repr(caught.value.problem)]
    printed = capsys.readouterr()
    text = "\n".join([*told, printed.out, printed.err])
    assert "you sent" in text
    for secret in (TOKEN, config, *app_key().private_pem.splitlines()[1:-1]):
        assert secret not in text
