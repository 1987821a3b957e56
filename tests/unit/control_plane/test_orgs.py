"""Orgs over the API: what an operator sets, what a tenant may, and what each of them sees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from nimbus.control_plane.demand.admission import admit_due
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane

pytestmark = pytest.mark.services
BIG = {
    "cpus": 4,
    "mem_mib": 8192,
    "disk_mib": 20480,
    "arch": "arm64",
    "image": "heavy",
    "max_machines": 2,
    "priority": -3,
}
PLAIN = {"cpus": 1, "mem_mib": 512}


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        await running.tell("completed", 1)  # before the other's: the installation that both name is octo-org's
        await running.tell("completed", 2, owner={"id": 502, "login": "else"})
        await running.plane.sql(
            "INSERT INTO installations (installation_id, org_id) SELECT 78, org_id FROM orgs WHERE login = 'else'"
        )
        yield running


async def ask(
    github: GithubPlane, method: str, path: str, body: dict[str, Any] | None = None, **claims: object
) -> httpx2.Response:
    return await github.plane.http.request(method, path, json=body, headers=github.plane.admin(**claims))


async def id_of(github: GithubPlane, login: str) -> int:
    [row] = await github.plane.sql("SELECT org_id FROM orgs WHERE login = $1", login)
    return int(row["org_id"])


async def test_an_operator_sees_every_org_and_a_tenant_its_own(github: GithubPlane) -> None:
    every = (await ask(github, "GET", "/api/orgs")).json()["orgs"]
    assert [org["login"] for org in every] == ["else", "local", "octo-org"]
    own = await id_of(github, "octo-org")
    assert [org["login"] for org in (await ask(github, "GET", "/api/orgs", org_id=own)).json()["orgs"]] == ["octo-org"]
    for name in ("else", str(await id_of(github, "else")), "nobody"):
        for method, path in (("GET", ""), ("GET", "/labels"), ("PATCH", ""), ("DELETE", "/labels/big")):
            answer = await ask(github, method, f"/api/orgs/{name}{path}", {} if method == "PATCH" else None, org_id=own)
            assert answer.status_code == 404


async def test_limits_are_set_one_by_one_and_taken_away_by_null(github: GithubPlane) -> None:
    first = await ask(github, "PATCH", "/api/orgs/Octo-Org", {"max_machines": 5, "runner_group_id": 3})
    assert first.status_code == 200
    second = (await ask(github, "PATCH", "/api/orgs/octo-org", {"max_cpus": 16, "max_machines": None})).json()
    assert (second["max_machines"], second["max_cpus"], second["runner_group_id"]) == (None, 16, 3)


@pytest.mark.parametrize("body", [{"max_machines": -1}, {"max_cpus": "5"}, {"login": "x"}, {"runner_group_id": 0}])
async def test_a_limit_that_makes_no_sense_is_refused_with_its_name(github: GithubPlane, body: dict[str, Any]) -> None:
    answer = await ask(github, "PATCH", "/api/orgs/octo-org", body)
    assert answer.status_code == 400
    assert next(iter(body)) in answer.text


async def test_a_tenant_may_lower_its_own_caps_and_raise_none(github: GithubPlane) -> None:
    own = await id_of(github, "octo-org")
    await ask(github, "PATCH", "/api/orgs/octo-org", {"max_machines": 5})
    for raised in ({"max_machines": 6}, {"max_machines": None}):
        answer = await ask(github, "PATCH", "/api/orgs/octo-org", raised, org_id=own)
        assert answer.status_code == 403
        assert "only the operator may raise it" in answer.text
    lowered = await ask(github, "PATCH", "/api/orgs/octo-org", {"max_machines": 4, "max_cpus": 9}, org_id=own)
    assert (lowered.json()["max_machines"], lowered.json()["max_cpus"]) == (4, 9)


async def test_a_token_that_only_reads_changes_nothing(github: GithubPlane) -> None:
    for method, path, body in (
        ("PATCH", "", {"max_cpus": 1}),
        ("PUT", "/labels/big", BIG),
        ("DELETE", "/labels/big", None),
    ):
        assert (await ask(github, method, f"/api/orgs/octo-org{path}", body, role="read")).status_code == 403


async def test_a_label_is_set_shown_used_and_removed(github: GithubPlane) -> None:
    answer = await ask(github, "PUT", "/api/orgs/octo-org/labels/Big", BIG)
    assert answer.json() == {"label": "big", **BIG}
    assert (await ask(github, "GET", "/api/orgs/octo-org")).json()["labels"] == [{"label": "big", **BIG}]
    assert (await ask(github, "GET", "/api/orgs/octo-org/labels")).json()["labels"] == [{"label": "big", **BIG}]
    await github.tell("queued", 3, labels=["BIG"])
    [machine] = await github.machines()
    assert (machine["alias"], machine["arch"], machine["image"]) == ("big", "arm64", "heavy")
    assert (await ask(github, "DELETE", "/api/orgs/octo-org/labels/big")).json() == {"label": "big", "removed": True}
    assert await github.states() == ["cancelled!"]
    job = (await github.plane.http.get("/api/jobs/3", headers=github.plane.admin())).json()
    assert "must change its labels: none of its labels is Nimbus' any more" in job["waits_for"]
    assert (await ask(github, "DELETE", "/api/orgs/octo-org/labels/big")).status_code == 404


async def test_a_job_that_waits_for_a_label_gets_its_machine_when_that_is_set(github: GithubPlane) -> None:
    await github.tell("queued", 3, labels=["nimbus-large"])
    await ask(github, "PUT", "/api/orgs/octo-org/labels/nimbus-large", PLAIN)
    await admit_due(github.plane.services, github.forge.demand)
    assert await github.states() == ["queued"]


@pytest.mark.parametrize(
    ("label", "body"),
    [
        ("nimbus", PLAIN),
        ("nimbus-4cpu-8gb", PLAIN),
        ("ubuntu-latest", PLAIN),
        ("two%20words", PLAIN),
        ("big", {"cpus": 65, "mem_mib": 512}),
        ("big", {"cpus": 1, "mem_mib": 1}),
        ("big", {"cpus": 1}),
        ("big", PLAIN | {"arch": "sparc"}),
        ("big", PLAIN | {"image": "../etc/passwd"}),
        ("big", PLAIN | {"memory": 5}),
    ],
)
async def test_a_label_that_cannot_be_is_refused(github: GithubPlane, label: str, body: dict[str, Any]) -> None:
    answer = await ask(github, "PUT", f"/api/orgs/octo-org/labels/{label}", body)
    assert answer.status_code == 400, answer.text
    assert (await ask(github, "GET", "/api/orgs/octo-org/labels")).json()["labels"] == []


async def test_an_org_shows_what_it_holds_and_what_github_refuses_it(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    for job_id in (3, 4):
        await github.tell("queued", job_id)
    await github.lease(agent)
    await github.plane.sql(
        "INSERT INTO forge_problems (installation_id, scope, task, kind, said, retry_at) VALUES "
        "(77, '', 'any', 'ip_allow_list', 'their words', now() + interval '1 hour'),"
        "(78, '', 'any', 'suspended', 'of another org', now() + interval '1 hour')"
    )
    org = (await ask(github, "GET", "/api/orgs/octo-org")).json()
    assert org["holds"] == {"machines": 1, "cpus": 1, "queued": 1}
    assert org["installations"] == [{"installation_id": 77, "suspended": False}]
    [problem] = org["problems"]
    assert (problem["kind"], problem["said"], problem["repo"]) == ("ip_allow_list", "their words", None)
    assert "an owner of octo-org must add this control plane's address" in problem["means"]


async def test_a_weight_is_set_by_the_operator_and_lowered_by_the_org(github: GithubPlane) -> None:
    own = await id_of(github, "octo-org")
    assert (await ask(github, "GET", "/api/orgs/octo-org")).json()["weight"] == 100
    assert (await ask(github, "PATCH", "/api/orgs/octo-org", {"weight": 200})).json()["weight"] == 200
    assert (await ask(github, "PATCH", "/api/orgs/octo-org", {"max_cpus": 9})).json()["weight"] == 200
    raised = await ask(github, "PATCH", "/api/orgs/octo-org", {"weight": 201}, org_id=own)
    assert (raised.status_code, "only the operator may raise it" in raised.text) == (403, True)
    assert (await ask(github, "PATCH", "/api/orgs/octo-org", {"weight": 50}, org_id=own)).json()["weight"] == 50
    assert (await ask(github, "PATCH", "/api/orgs/octo-org", {"weight": None}, org_id=own)).status_code == 403
    assert (await ask(github, "PATCH", "/api/orgs/octo-org", {"weight": None})).json()["weight"] == 100
    for wrong in (0, 10_001, "100", 1.5):
        answer = await ask(github, "PATCH", "/api/orgs/octo-org", {"weight": wrong})
        assert (answer.status_code, "weight" in answer.text) == (400, True)


async def test_a_labels_priority_reaches_its_machines_also_those_that_wait(github: GithubPlane) -> None:
    own = await id_of(github, "octo-org")
    first = await ask(github, "PUT", "/api/orgs/octo-org/labels/big", PLAIN | {"priority": -2}, org_id=own)
    assert first.json()["priority"] == -2
    await github.tell("queued", 3, labels=["big"])
    shown = "SELECT priority, extract(epoch FROM created_at - turn_at)::integer AS head_start_s FROM machines"
    assert list(map(dict, await github.plane.sql(shown))) == [{"priority": -2, "head_start_s": -120}]
    raised = await ask(github, "PUT", "/api/orgs/octo-org/labels/big", PLAIN | {"priority": 1}, org_id=own)
    assert (raised.status_code, "only the operator" in raised.text) == (403, True)
    await ask(github, "PUT", "/api/orgs/octo-org/labels/big", PLAIN | {"priority": 5})
    assert list(map(dict, await github.plane.sql(shown))) == [{"priority": 5, "head_start_s": 300}]
    kept = await ask(github, "PUT", "/api/orgs/octo-org/labels/big", PLAIN | {"priority": 5}, org_id=own)
    assert kept.status_code == 200
    wrong = await ask(github, "PUT", "/api/orgs/octo-org/labels/big", PLAIN | {"priority": 101})
    assert (wrong.status_code, "priority" in wrong.text) == (400, True)
