"""A runner that registers itself by a token, as config.sh does: reusable for an hour, and only where it reaches."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
import trio

from nimbus.model.errors import Unauthorized
from nimbus.sim.registrations import LIFE_S, Registrations
from tests.forge import Sim, open_sim
from tests.unit.sim.rig import Clock

REPO = "/repos/octo-org/hello/actions/runners"
ORG = "/orgs/octo-org/actions/runners"


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    with trio.fail_after(60):
        async with open_sim(more_owners=("acme",)) as running:
            yield running


async def token(sim: Sim, root: str = REPO, kind: str = "registration-token") -> str:
    answer = await sim.http.post(f"{root}/{kind}", headers=await sim.token_headers())
    assert answer.status_code == 201, answer.text
    assert answer.json()["expires_at"].endswith("Z")
    return str(answer.json()["token"])


async def register(sim: Sim, bearer: str, *, to: str = "octo-org/hello", **fields: str) -> httpx2.Response:
    lines = {"url": f"{sim.url}/{to}", "name": "nimbus-1-1", "labels": "nimbus,x64"} | fields
    body = "".join(f"{word} {value}\n" for word, value in lines.items())
    return await sim.http.post("/_runner/register", content=body, headers={"Authorization": f"Bearer {bearer}"})


def said(answer: httpx2.Response) -> dict[str, str]:
    return {word: rest for word, _, rest in (line.partition(" ") for line in answer.text.splitlines())}


async def test_a_runner_registers_itself_and_takes_its_one_job(sim: Sim) -> None:
    registered = await register(sim, await token(sim))
    assert (registered.status_code, said(registered)["work"]) == (200, "_work")
    bearer = {"Authorization": f"Bearer {said(registered)['token']}"}
    run = await sim.http.post("/sim/workflows", content="jobs: {a: {runs-on: nimbus, steps: [{run: x}]}}")
    assert (await sim.http.post("/_runner/session", headers=bearer)).status_code == 200
    job_id = run.json()["jobs"][0]["job_id"]
    assert (await sim.http.get("/_runner/job", headers=bearer)).text.startswith(f"job {job_id}\n")
    await sim.http.post(f"/_runner/jobs/{job_id}/accept", headers=bearer)
    await sim.http.post(f"/_runner/jobs/{job_id}/complete", headers=bearer, content=b"success")
    assert sim.world.forge.runners == {}


async def test_one_token_registers_many_runners_each_with_exactly_its_labels(sim: Sim) -> None:
    bearer = await token(sim)
    for name in ("a", "b"):
        assert (await register(sim, bearer, name=name, labels="Nimbus,GPU")).status_code == 200
    assert [(each.name, each.labels) for each in sim.world.forge.runners.values()] == [
        ("a", ("nimbus", "gpu")),
        ("b", ("nimbus", "gpu")),
    ]
    again = await register(sim, bearer, name="a")
    assert (again.status_code, again.text.startswith("refused Already exists")) == (409, True)


@pytest.mark.parametrize(
    ("root", "to", "status"),
    [
        (REPO, "octo-org/other", 404),
        (REPO, "octo-org", 404),
        (ORG, "octo-org", 200),
        (ORG, "octo-org/other", 200),
        (ORG, "acme", 404),
        (ORG, "acme/hello", 404),
        (ORG, "octo-org/hello/more", 404),
        (ORG, "octo-organisation", 404),
    ],
)
async def test_a_token_reaches_its_organisation_or_its_repository(sim: Sim, root: str, to: str, status: int) -> None:
    assert (await register(sim, await token(sim, root), to=to)).status_code == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"group": "Default"}, 200),
        ({"group": "full"}, 409),
        ({"group": "nowhere"}, 404),
        ({"labels": ","}, 409),
        ({"name": "x" * 65}, 409),
        ({"url": "http://[broken"}, 409),
        ({"name": "x" * 70_000}, 409),
    ],
)
async def test_what_cannot_be_registered_is_refused_in_a_line(sim: Sim, fields: dict[str, str], status: int) -> None:
    answer = await register(sim, await token(sim), **fields)
    assert answer.status_code == status, answer.text
    assert answer.text.split()[0] == ("ok" if status == 200 else "refused")


async def test_no_other_token_registers_a_runner(sim: Sim) -> None:
    installation = (await sim.token_headers())["Authorization"].removeprefix("Bearer ")
    for bearer in ("AAAA", installation, await token(sim, kind="remove-token")):
        assert (await register(sim, bearer)).status_code == 401


async def test_a_remove_token_takes_an_idle_runner_away(sim: Sim) -> None:
    await register(sim, await token(sim))
    bearer = {"Authorization": f"Bearer {await token(sim, kind='remove-token')}"}
    body = f"url {sim.url}/octo-org/hello\nname nimbus-1-1\n"
    assert (await sim.http.post("/_runner/remove", content=body, headers=bearer)).status_code == 200
    assert sim.world.forge.runners == {}
    assert (await sim.http.post("/_runner/remove", content=body, headers=bearer)).status_code == 404


def test_a_token_is_good_for_an_hour_and_no_longer() -> None:
    clock = Clock()
    registrations = Registrations(clock)
    issued = registrations.issue("octo-org", removes=False)
    clock.now_s += LIFE_S - 1
    assert registrations.check(issued.token, removes=False) == issued
    clock.now_s += 1
    with pytest.raises(Unauthorized):
        registrations.check(issued.token, removes=False)
    assert registrations.valid() == []
    assert issued.token not in repr(issued)
