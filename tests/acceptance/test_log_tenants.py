"""No route of the log pipeline shows one organisation what another printed, whatever is asked and however it is asked.

Through the process that operators start. The routes are those that the application has: one that is added later is
asked everything below too, or fails here until it has questions of its own.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import cast

import pytest
import trio

from nimbus.logging_pipeline.app import build_logging_pipeline
from nimbus.logging_pipeline.services import Services
from tests.acceptance.logtenants import AMBER, BOTH, NOBODY, VIOLET, Answer, Params, Tenant, World, open_world
from tests.unit.logging_pipeline.rig import run_engine

pytestmark = pytest.mark.slow

LIMIT_S = 600
AT_ONCE = 8
CURSORS = 6  # of another's that each route is asked with
OPEN = {"/healthz", "/readyz", "/metrics"}  # for everybody, of nobody
ASKED_APART = {"POST /ingest", "POST /logs/tickets"}
NUMBERS_ONLY = ("/counts",)  # of these the figures are looked at, since they quote no line


class Nothing:
    """Stands where the application's services do: the routes are only listed."""

    def __getattr__(self, name: str) -> Nothing:
        return self


def rules() -> list[tuple[str, str]]:
    """Method and path of every route."""
    listed = build_logging_pipeline(cast("Services", Nothing())).url_map.iter_rules()
    return sorted((method, rule.rule) for rule in listed for method in (rule.methods or set()) - {"HEAD", "OPTIONS"})


def readable() -> list[str]:
    return [path for method, path in rules() if method == "GET" and path not in OPEN]


def fill(path: str, job: object, machine: object) -> str:
    return path.replace("<job>", str(job)).replace("<machine>", str(machine))


def questions(path: str, mine: Tenant, other: Tenant, cursors: list[str]) -> Iterator[Params]:
    """Everything that a caller may add to a path to see more than his own."""
    yield {}
    for name, value in product(("org", "org_id"), (str(other.org_id), f"{mine.org_id},{other.org_id}", "0", "*")):
        yield {name: value}
    yield from ({"job": str(other.job_id)}, {"job_id": str(other.job_id)}, {"machine": str(other.machine_id)})
    for name, cursor in product(("after", "before", "around", "cursor"), cursors):
        yield {name: cursor}
    if path.endswith("/follow"):
        return
    for repo in (mine.repo_id, other.repo_id):
        yield {"repo": str(repo)}
        yield {"repo": str(repo), "q": "needle"}
        yield {"repo": str(repo), "org": str(other.org_id), "q": other.word}
    for word, match in product(("needle", other.word, "%", "' OR 1=1 --"), ("token", "substring")):
        yield {"q": word, "match": match}
        yield {"q": word, "match": match, "org": str(other.org_id)}
    for cursor in cursors:
        yield {"q": "needle", "after": cursor}
    now_ms = int(time.time() * 1000)
    yield {"since": str(now_ms - 3_600_000), "until": str(now_ms + 3_600_000)}
    yield from ({"tail": "100"}, {"limit": "1000"}, {"level": "error"}, {"level": "error,info"}, {"stream": "stderr"})
    yield from ({"step": "0"}, {"fence": "1"}, {"format": "text"}, {"format": "gz"}, {"format": "jsonl"})


async def collect_cursors(world: World, whose: Tenant) -> list[str]:
    """Every cursor that this organisation is given for its own output."""
    found: set[str] = set()
    for path in readable():
        for params in ({"limit": "3"}, {"limit": "3", "q": "needle"}):
            if not path.endswith("/follow"):
                answer = await world.read(whose, fill(path, whose.job_id, whose.machine_id), params)
                found |= set(_cursors_in(answer.value))
    stream = await world.read(whose, f"/logs/jobs/{whose.job_id}/follow", {})
    found |= {line[4:] for line in stream.text.splitlines()[:8] if line.startswith("id: ")}
    assert found
    return sorted(found)[:: max(1, len(found) // CURSORS)]


async def wait_found(world: World, tenant: Tenant) -> None:
    """Until its output is found by its repository, which the pipeline learns behind the rows' back."""
    for path in readable():
        while path.endswith("/search"):
            answer = await world.read(tenant, path, {"repo": str(tenant.repo_id), "q": "needle"})
            if tenant.mark in answer.text:
                break
            await trio.sleep(0.1)


def _cursors_in(value: object) -> Iterator[str]:
    """Texts behind a name that is one of a cursor, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in {"next", "prev", "cursor", "after", "before", "place", "around"} and isinstance(inner, str):
                yield inner
            yield from _cursors_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _cursors_in(inner)


def without_ids(answer: Answer, *ids: object) -> str:
    text = answer.text
    for each in ids:
        text = text.replace(str(each), "N")
    return text


def test_every_route_is_asked_below() -> None:
    strange = [
        f"{method} {path}"
        for method, path in rules()
        if path not in OPEN
        and f"{method} {path}" not in ASKED_APART
        and (method != "GET" or set(re.findall("<[^>]*>", path)) - {"<job>", "<machine>"})
    ]
    assert strange == [], "what would show a foreign row here? Ask it in this file"
    assert {f"{method} {path}" for method, path in rules()} >= ASKED_APART


async def test_nothing_that_one_organisation_may_ask_shows_a_row_of_the_other(tmp_path: Path) -> None:
    shown: list[str] = []
    own: set[tuple[str, str]] = set()  # routes that told each organisation its own
    limiter = trio.CapacityLimiter(AT_ONCE)

    async def probe(world: World, mine: Tenant, other: Tenant, path: str, params: Params, resume: str | None) -> None:
        ids = ((mine.job_id, mine.machine_id), (other.job_id, other.machine_id))
        for job, machine in ids if "<" in path else ids[:1]:
            async with limiter:
                extra = {} if resume is None else {"Last-Event-ID": resume}
                answer = await world.read(mine, fill(path, job, machine), params, **extra)
            what = f"{mine.word} asks {fill(path, job, machine)} {dict(params)} {extra}: {answer.status}"
            if other.mark.encode() in answer.all or answer.status >= 500:
                shown.append(what)
            if answer.status == 200 and mine.mark.encode() in answer.all:
                own.add((mine.word, path))

    with trio.fail_after(LIMIT_S):
        async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
            for mine, other in BOTH:
                cursors = await collect_cursors(world, other)
                await wait_found(world, mine)
                for path in readable():
                    for params in questions(path, mine, other, cursors):
                        nursery.start_soon(probe, world, mine, other, path, params, None)
                    for resume in cursors if path.endswith("/follow") else ():
                        nursery.start_soon(probe, world, mine, other, path, {}, resume)
    assert shown == []
    told = {(mine.word, path) for mine, _ in BOTH for path in readable() if not path.endswith(NUMBERS_ONLY)}
    assert told - own == set(), "a route that never told anybody anything proves nothing"


async def test_output_of_another_organisation_looks_like_output_that_does_not_exist(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_world(tmp_path) as world:
            await world.ingest(VIOLET, 74, VIOLET.rows(3))
            for path in readable():
                if "<" in path:
                    foreign = await world.read(AMBER, fill(path, VIOLET.job_id, 74), {})
                    absent = await world.read(AMBER, fill(path, NOBODY["job"], NOBODY["machine"]), {})
                    assert foreign.status == absent.status, path
                    assert without_ids(foreign, VIOLET.job_id, 74) == without_ids(absent, *NOBODY.values()), path


async def test_what_another_organisation_prints_is_not_counted(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_world(tmp_path) as world:
            for mine, other in BOTH:
                for path in [each for each in readable() if each.endswith(NUMBERS_ONLY)]:
                    of_job = "<job>" in path
                    answer = await world.read(mine, fill(path, mine.job_id, mine.machine_id), {})
                    assert answer.value["lines"] == mine.lines + (0 if of_job else mine.crossed), answer
                    for params in ({"org": str(other.org_id)}, {"repo": str(other.repo_id)}):
                        answer = await world.read(mine, fill(path, other.job_id, other.machine_id), params)
                        assert answer.value.get("lines", 0) == 0, (path, params, answer)


async def test_a_ticket_opens_nothing_of_another_organisation(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_world(tmp_path) as world:

            async def wish(**wanted: object) -> Answer:
                return await world.ask("POST", "/logs/tickets", {}, world.headers(AMBER), json.dumps(wanted).encode())

            refused = [await wish(job_id=VIOLET.job_id), await wish(job_id=int(NOBODY["job"]))]
            assert [answer.status for answer in refused] == [404, 404]
            assert without_ids(refused[0], VIOLET.job_id) == without_ids(refused[1], NOBODY["job"])
            for org in ("org", "org_id"):
                assert (await wish(job_id=AMBER.job_id, **{org: VIOLET.org_id})).status == 400

            for wanted in (
                {"job_id": AMBER.job_id},
                {"machine_id": AMBER.machine_id},
                {"machine_id": VIOLET.machine_id},
            ):
                made = await wish(**wanted)
                assert made.status == 201, made
                ticket, opens = str(made.value["ticket"]), str(made.value["path"])
                for path in readable():
                    for tenant in (AMBER, VIOLET):
                        asked = fill(path, tenant.job_id, tenant.machine_id)
                        answer = await world.ask("GET", asked, {"ticket": ticket}, {}, limit_s=2)
                        assert VIOLET.mark.encode() not in answer.all, asked
                        assert (answer.status == 200) == (asked == opens), asked


async def test_a_live_tail_shows_nothing_that_another_organisation_prints_under_the_same_numbers(
    tmp_path: Path,
) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_world(tmp_path) as world:
            check_tail(await follow_while_both_print(world, world))


@pytest.mark.services
async def test_a_live_tail_of_another_replica_shows_nothing_of_it_either(tmp_path: Path, redis_url: str) -> None:
    with trio.fail_after(LIMIT_S), run_engine(tmp_path / "engine") as engine:
        shared = {
            "NIMBUS_CLICKHOUSE_URL": engine.url,
            "NIMBUS_CLICKHOUSE_USERNAME": engine.username,
            "NIMBUS_CLICKHOUSE_PASSWORD": engine.password,
            "NIMBUS_REDIS_URL": redis_url,
        }
        async with open_world(tmp_path / "one", **shared) as one, open_world(tmp_path / "two", **shared) as two:
            check_tail(await follow_while_both_print(two, one))


async def follow_while_both_print(listening: World, printing: World) -> Answer:
    """What a reader is told of a machine number under which the other organisation prints too."""
    machine, seen = 88, list[Answer]()

    async def follow() -> None:
        path = f"/logs/machines/{machine}/follow"
        seen.append(await listening.ask("GET", path, {}, listening.headers(AMBER), limit_s=60))

    rows = AMBER.rows(3)
    async with trio.open_nursery() as nursery:
        await printing.ingest(AMBER, machine, rows[:1])
        nursery.start_soon(follow)
        await printing.ingest(VIOLET, machine, VIOLET.rows(9))  # an end among them
        await printing.ingest(AMBER, machine, rows[1:])
    return seen[0]


def check_tail(answer: Answer) -> None:
    assert [answer.text.count(f"{AMBER.mark} line {n}") for n in range(3)] == [1, 1, 1]
    assert VIOLET.mark not in answer.text
    assert "event: end" in answer.text
