"""What a good token reaches: its own org and what its role or scope names, by no other spelling and no other route."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimbus.control_plane.app import build_control_plane
from nimbus.control_plane.openapi.operation import Access, operation_of
from tests.unit.control_plane.doors import Doors, cache_payload, cache_token, forge_cache_token, open_doors
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
from tests.unit.control_plane.plane import open_plane

pytestmark = pytest.mark.services


@pytest.fixture
async def doors(database_dsn: str, redis_url: str) -> AsyncIterator[Doors]:
    async with open_plane(database_dsn, redis_url) as plane, open_doors(plane) as doors:
        yield doors


# --- orgs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


ONE, TWELVE = 1001, 10012  # the number of one org begins with the other's
WIDE = str(ONE).translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789"})
OTHER_SPELLINGS = [
    f"{TWELVE}", f"ORG-{ONE}", f"org-{ONE}", f"org-0{ONE}", f"0{ONE}", f"{ONE}%2f..%2f{TWELVE}",
    f"org-{ONE}%2f..%2forg-{TWELVE}", f"{ONE}%2F..%2F{TWELVE}", f"..%2f{TWELVE}", f"{ONE}%00", f"{ONE}%00{TWELVE}",
    WIDE, f"{ONE}%20", f"+{ONE}", f"-{ONE}", f"{ONE}.0",
    f"{ONE:#x}", "1e3", "*", "%25", "_", f"{ONE},{TWELVE}", f"{ONE};{TWELVE}", "9" * 30, "twelve", "TWELVE",
    "one%2f..%2ftwelve", "%27%20OR%201=1--", "n" * 600,
]  # fmt: skip


async def test_a_token_of_org_1_reaches_org_12_by_no_spelling(github: GithubPlane) -> None:
    await github.plane.sql(
        "INSERT INTO orgs (org_id, forge, forge_id, login) OVERRIDING SYSTEM VALUE "
        "VALUES ($1, 'github', 91, 'one'), ($2, 'github', 92, 'twelve')",
        ONE,
        TWELVE,
    )
    mine, http = github.plane.admin(org_id=ONE), github.plane.http
    asked = [("GET", f"/api/orgs/{name}") for name in OTHER_SPELLINGS]
    asked += [("PATCH", f"/api/orgs/{TWELVE}"), ("GET", f"/api/orgs/{TWELVE}/labels"), ("PATCH", "/api/orgs/twelve")]

    answers = {path: await http.request(method, path, headers=mine, json={}) for method, path in asked}
    own = await http.get(f"/api/orgs/{ONE}", headers=mine)
    listed = await http.get("/api/orgs", headers=mine)
    jobs = await http.post("/api/jobs", headers=mine, json={"argv": ["true"], "org_id": TWELVE})

    assert own.json()["login"] == "one"
    assert [org["login"] for org in listed.json()["orgs"]] == ["one"]
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(answers, 404)
    assert jobs.status_code == 404


async def test_an_org_in_a_token_that_is_no_number_is_a_401_and_never_all_orgs(doors: Doors) -> None:
    org_ids: list[object] = ["1", "org-1", 1.0, True, -1, 2**63, [1], {"org_id": 1}, "", "\uff11"]
    for org_id in org_ids:
        admin, machine, reader = (doors.jwt[at] for at in (0, 4, 5))
        assert [await door.show(door.token(org_id=org_id)) for door in (admin, machine, reader)] == [401, 401, 401]
        assert await doors.reach(forge_cache_token(cache_payload(org_id=org_id))) == 401


async def test_a_cache_token_of_org_1_reaches_org_12_by_no_spelling(doors: Doors) -> None:
    mine = cache_token(1)
    names = [
        "org-12", "ORG-1", "Org-1", "org-01", "org-1%2f..%2forg-2", "org-1%2F..%2Forg-12", "org-%EF%BC%91", "org-1%00",
        "org-1%20", "org-1/repo-0", "org-1//repo-1", "org-12/repo-1", "org-", "org-+1", "1", "org-1/..", "org-2",
        "org-1%0a", "org-%D9%A1",
    ]  # fmt: skip
    seen = {name: await doors.reach(mine, name) for name in names}

    assert set(seen.values()) <= {403, 404}, seen
    assert await doors.reach(mine, "org-1") == await doors.reach(mine, "org-1/repo-12") == 200
    assert await doors.reach(cache_token(12), "org-1") == 403


async def test_a_pull_token_is_forbidden_to_put_and_to_delete(doors: Doors) -> None:
    pull = forge_cache_token(cache_payload(scopes=["pull:org-1"]))
    push = forge_cache_token(cache_payload(scopes=["push:org-1"]))

    assert [await doors.reach(pull, method=method) for method in ("GET", "PUT", "DELETE")] == [200, 403, 403]
    assert [await doors.reach(push, method=method) for method in ("GET", "PUT", "DELETE")] == [403, 200, 403]


async def test_a_repositorys_token_reaches_no_other_and_not_the_org(doors: Doors) -> None:
    narrow = forge_cache_token(cache_payload(scopes=["pull:org-1/repo-3"]))
    names = ("org-1/repo-3", "org-1/repo-33", "org-1", "org-2/repo-3")
    assert [await doors.reach(narrow, name) for name in names] == [200, 403, 403, 403]


# --- routes that change something ---------------------------------------------------------------------------------


def changing_routes(github: GithubPlane) -> list[tuple[str, str]]:
    """Every route of the running application that changes something for people: method and a path that fits it."""
    app = build_control_plane(github.plane.services)
    github.forge.register(app, github.plane.services)
    found = []
    for rule in app.url_map.iter_rules():
        operation = operation_of(app.view_functions[rule.endpoint])
        for method in {"POST", "PUT", "PATCH", "DELETE"} & (rule.methods or set()):
            assert operation is not None, rule.rule
            if operation.access not in {Access.AGENT, Access.ENROLMENT, Access.SIGNATURE}:
                assert operation.access is Access.WRITE, rule.rule
                filled = dict.fromkeys(rule.arguments, 424242 if "int:" in rule.rule else "nobody")
                found.append((method, str(rule.build(filled)[1])))  # type: ignore[index]
    return sorted(found)


async def test_a_token_that_only_reads_is_forbidden_every_route_that_changes_something(github: GithubPlane) -> None:
    routes = changing_routes(github)
    reader = github.plane.admin(role="read")
    http = github.plane.http
    answers = {route: (await http.request(*route, headers=reader, json={})).status_code for route in routes}

    assert len(routes) > 8
    assert set(answers.values()) == {403}, answers


async def test_a_replayed_nonce_is_a_409_at_every_route_that_changes_something(github: GithubPlane) -> None:
    first, second = {}, {}
    for at, route in enumerate(changing_routes(github)):
        once = github.plane.admin(nonce=f"once-{at}")
        first[route] = (await github.plane.http.request(*route, headers=once, json={})).text
        second[route] = (await github.plane.http.request(*route, headers=once, json={})).status_code

    assert set(second.values()) == {409}, second
    assert [text for text in first.values() if "good for one call" in text] == []
