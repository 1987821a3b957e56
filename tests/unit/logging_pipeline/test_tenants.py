"""Two orgs side by side: no route shows one a line, a number or a word about the other's output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from nimbus.logging_pipeline.app import build_logging_pipeline
from nimbus.logging_pipeline.engine.child import Endpoint
from tests.unit.logging_pipeline.rig import Rig, open_rig, row

MINE, THEIRS = "mine-and-shared-word", "theirs-and-shared-word"
OF_A_JOB = (
    "/logs/jobs/{job}", "/logs/jobs/{job}/counts", "/logs/jobs/{job}/annotations", "/logs/jobs/{job}/download",
    "/logs/jobs/{job}/follow",
)  # fmt: skip


async def prepare(rig: Rig) -> None:
    """Org 1 has job 100 on machine 7, org 2 job 200 on machine 8; both printed the same word."""
    rig.control.add_job(100, 1, "completed", [(7, 1)])
    rig.control.add_job(200, 2, "completed", [(8, 1)])
    name = rig.services.table.name
    for org, repo, job, machine, word in ((1, 55, 100, 7, MINE), (2, 56, 200, 8, THEIRS)):
        await rig.services.table.command(
            f"INSERT INTO {name}_links (org_id, repo_id, job_id, attempt, machine_id, fence) "  # noqa: S608 - numbers
            f"VALUES ({org:d}, {repo:d}, {job:d}, 1, {machine:d}, 1)"
        )
        await rig.ingest([row(n, f"{word} {n}") for n in range(5)], org=org, machine=machine)


@pytest.mark.parametrize("path", OF_A_JOB)
async def test_a_job_of_another_org_is_like_one_that_does_not_exist(
    tmp_path: Path, engine: Endpoint, path: str
) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            foreign, absent = await rig.read(path.format(job=200)), await rig.read(path.format(job=999))
            assert (foreign.status_code, absent.status_code) == (404, 404)
            assert foreign.text.replace("200", "999") == absent.text
            assert set(foreign.headers) == set(absent.headers)


@pytest.mark.parametrize("way", [{}, {"tail": "5"}, {"q": "shared"}, {"around": "8.1.2"}, {"before": "8.1.4"}])
async def test_a_machine_of_another_org_is_like_one_that_never_printed(
    tmp_path: Path, engine: Endpoint, way: dict[str, str]
) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            foreign = await rig.read("/logs/machines/8", 1, **way)
            absent = await rig.read(
                "/logs/machines/9", 1, **{name: text.replace("8.", "9.") for name, text in way.items()}
            )
            assert foreign.status_code == absent.status_code == 200
            assert foreign.json()["rows"] == []
            assert foreign.text.replace("8.1", "9.1") == absent.text
            download = await rig.read("/logs/machines/8/download", 1)
            assert (download.status_code, download.content) == (200, b"")


async def test_a_search_and_a_count_see_ones_own_org_only(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            for asked in ({"q": "shared"}, {"q": "shared-word", "match": "substring"}, {"q": "shared", "org": "1"}):
                hits = await rig.client.get(
                    f"{rig.url}/logs/search", params=asked, headers={"Authorization": f"Bearer {rig.read_token(1)}"}
                )
                assert {hit["machine_id"] for hit in hits.json()["hits"]} == {7}
                assert THEIRS not in hits.text
            for scope in ({"repo": "56"}, {"machine": "8"}):
                assert (await rig.read("/logs/search", 1, q="shared", **scope)).json()["hits"] == []
                assert (await rig.read("/logs/counts", 1, **scope)).json()["lines"] == 0
            for path in ("/logs/search", "/logs/counts"):
                reply = await rig.client.get(
                    f"{rig.url}{path}",
                    params={"q": "shared", "org": "2"},
                    headers={"Authorization": f"Bearer {rig.read_token(1)}"},
                )
                assert reply.status_code == 404
                assert (await rig.read(path, 1, q="shared", job="200")).status_code == 404
            counted = (await rig.read("/logs/counts", 1)).json()
            assert (counted["lines"], [job["job_id"] for job in counted["jobs"]]) == (5, [100])


async def test_a_cursor_of_another_orgs_output_is_forbidden(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            theirs = (await rig.read("/logs/jobs/200", 2, limit="2")).json()["next"]
            for way in ("after", "before", "around"):
                assert (await rig.read("/logs/jobs/100", 1, **{way: theirs})).status_code == 403
            searched = (await rig.read("/logs/search", 2, q="shared", limit="2")).json()["next"]
            assert (await rig.read("/logs/search", 1, q="shared", after=searched)).status_code == 403


async def test_an_operator_names_what_to_search(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await prepare(rig)
            for path in ("/logs/search", "/logs/counts"):
                unnamed = await rig.read(path, None, q="shared")
                assert (unnamed.status_code, "org=" in unnamed.text) == (400, True)
            for scope in ({"repo": "56"}, {"job": "200"}, {"machine": "8"}):
                found = (await rig.read("/logs/search", None, q="shared", **scope)).json()
                assert {hit["machine_id"] for hit in found["hits"]} == {8}
            token = {"Authorization": f"Bearer {rig.read_token(None)}"}
            named = await rig.client.get(f"{rig.url}/logs/search", params={"q": "shared", "org": "2"}, headers=token)
            assert {hit["machine_id"] for hit in named.json()["hits"]} == {8}
            assert (await rig.read("/logs/search", None, q="shared", repo="57")).status_code == 404


async def test_every_route_that_reads_demands_a_token_and_stands_in_the_documents(
    tmp_path: Path, engine: Endpoint
) -> None:
    documented = (Path(__file__).parents[3] / "docs" / "logs.md").read_text(encoding="utf-8")
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            routes = [
                rule for rule in build_logging_pipeline(rig.services).url_map.iter_rules() if "/logs/" in rule.rule
            ]
            assert len(routes) >= 9
            for rule in routes:
                method = "POST" if "POST" in (rule.methods or ()) else "GET"
                address = re.sub(r"<(?:\w+:)?(\w+)>", "1", rule.rule)
                assert (await rig.client.request(method, f"{rig.url}{address}")).status_code == 401
                shown = re.sub(r"<(?:\w+:)?(\w+)>", "ID", rule.rule)
                assert f"`{method} {shown}`" in documented, shown
