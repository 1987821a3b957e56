"""Registered secrets over the API: who may set and see what, how they lie in the database, how a key is rotated."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from nimbus.control_plane.orgs.masks import MAX_BYTES, MAX_LINES, MAX_MASKS, read_masks, reseal_masks
from nimbus.control_plane.orgs.seals import Sealed, Seals
from nimbus.runtime.settings import SharedSecret
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane

pytestmark = pytest.mark.services
VALUE = "correct-horse-battery-staple"
PATH = "/api/orgs/octo-org/masks"
OLD, NEW, NEXT = ("0123456789abcdef" * 4, "fedcba9876543210" * 4, "00112233445566778" * 4)
VARIABLE = "NIMBUS_JWT_SECRET"


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        await running.tell("completed", 1)
        await running.tell("completed", 2, owner={"id": 502, "login": "else"})
        yield running


async def ask(
    github: GithubPlane, method: str, path: str, body: dict[str, Any] | None = None, **claims: object
) -> httpx2.Response:
    return await github.plane.http.request(method, path, json=body, headers=github.plane.admin(**claims))


async def put(github: GithubPlane, name: str, value: str, **claims: object) -> httpx2.Response:
    return await ask(github, "PUT", f"{PATH}/{name}", {"value": value}, **claims)


async def id_of(github: GithubPlane, login: str) -> int:
    [row] = await github.plane.sql("SELECT org_id FROM orgs WHERE login = $1", login)
    return int(row["org_id"])


async def test_a_value_goes_in_and_to_services_and_is_never_told_to_people(github: GithubPlane) -> None:
    with capture_logs() as logs:
        told = await put(github, "deploy-key", VALUE)
        listed = await ask(github, "GET", PATH)
    assert (told.status_code, told.json()["name"], told.json()["bytes"]) == (200, "deploy-key", len(VALUE))
    assert [mask["name"] for mask in listed.json()["masks"]] == ["deploy-key"]
    assert VALUE not in told.text + listed.text + str(logs)
    assert await read_masks(github.plane.services, await id_of(github, "octo-org")) == [VALUE]


async def test_a_value_lies_sealed_in_the_database(github: GithubPlane) -> None:
    await put(github, "deploy-key", VALUE)
    [row] = await github.plane.sql("SELECT * FROM org_masks")
    assert VALUE.encode() not in row["sealed"]
    assert VALUE not in str(dict(row))


async def test_setting_a_value_again_takes_the_new_one_and_keeps_when_it_came(github: GithubPlane) -> None:
    first = (await put(github, "key", VALUE)).json()
    second = (await put(github, "key", "another-value-of-it")).json()
    assert second["created_at"] == first["created_at"] < second["changed_at"]
    assert await read_masks(github.plane.services, await id_of(github, "octo-org")) == ["another-value-of-it"]


async def test_a_removed_value_is_gone(github: GithubPlane) -> None:
    await put(github, "key", VALUE)
    gone, again = await ask(github, "DELETE", f"{PATH}/key"), await ask(github, "DELETE", f"{PATH}/key")
    assert (gone.status_code, gone.json(), again.status_code) == (200, {"name": "key", "removed": True}, 404)
    assert await github.plane.sql("SELECT * FROM org_masks") == []


async def test_a_tenants_admin_reaches_its_own_orgs_masks_and_no_other(github: GithubPlane) -> None:
    own, other = await id_of(github, "octo-org"), await id_of(github, "else")
    assert (await put(github, "mine", VALUE, org_id=own)).status_code == 200
    for method, path, body in (
        ("GET", PATH, None),
        ("PUT", f"{PATH}/mine", {"value": "x" * 9}),
        ("DELETE", f"{PATH}/mine", None),
    ):
        assert (await ask(github, method, path, body, org_id=other)).status_code == 404
    assert await read_masks(github.plane.services, other) == []
    assert await read_masks(github.plane.services, own) == [VALUE]


async def test_a_token_that_only_reads_sets_and_removes_nothing(github: GithubPlane) -> None:
    await put(github, "key", VALUE)
    assert (await put(github, "key", "something-else", role="read")).status_code == 403
    assert (await ask(github, "DELETE", f"{PATH}/key", role="read")).status_code == 403
    assert (await ask(github, "GET", PATH, role="read")).status_code == 200


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("key", {"value": "tiny-17"}),
        ("key", {"value": "a\nb\nc\nd\ne\nf"}),
        ("key", {"value": "        x        "}),
        ("key", {"value": 12345678}),
        ("key", {"value": "a" * 20_000}),
        ("key", {"value": "nul\0nul\0nul"}),
        ("key", {"value": VALUE, "note": "x"}),
        ("key", {}),
        ("-key", {"value": VALUE}),
        ("k" * 65, {"value": VALUE}),
        ("a b", {"value": VALUE}),
    ],
)
async def test_what_cannot_be_hidden_is_refused_without_its_value(
    github: GithubPlane, name: str, body: dict[str, Any]
) -> None:
    answer = await ask(github, "PUT", f"{PATH}/{name}", body)
    assert answer.status_code == 400
    assert str(body.get("value", VALUE)) not in answer.text


async def test_an_org_registers_no_more_than_every_line_can_be_searched_for(github: GithubPlane) -> None:
    org = await id_of(github, "octo-org")
    add = "INSERT INTO org_masks (org_id, name, kid, sealed, size_bytes, lines) VALUES ($1, $2, 'k', 'x', $3, $4)"
    for size, lines in ((MAX_BYTES - 5, 1), (1, MAX_LINES)):
        await github.plane.sql("DELETE FROM org_masks")
        await github.plane.sql(add, org, "large", size, lines)
        assert (await put(github, "one-more", VALUE)).status_code == 409
    await github.plane.sql("DELETE FROM org_masks")
    for number in range(MAX_MASKS):
        await github.plane.sql(add, org, f"mask-{number}", 8, 1)
    assert (await put(github, "one-more", VALUE)).status_code == 409
    assert (await put(github, "mask-3", VALUE)).status_code == 200


async def test_only_services_read_values(github: GithubPlane) -> None:
    await put(github, "key", VALUE)
    path = f"/api/internal/orgs/{await id_of(github, 'octo-org')}/masks"
    plane = github.plane
    allowed = await plane.http.get(path, headers=plane.service())
    assert (allowed.status_code, allowed.json()["values"]) == (200, [VALUE])
    for headers in ({}, plane.admin(), plane.admin(aud="internal")):
        answer = await plane.http.get(path, headers=headers)
        assert answer.status_code in {401, 403}
        assert VALUE not in answer.text
    unknown = await plane.http.get("/api/internal/orgs/99999/masks", headers=plane.service())
    assert (unknown.status_code, unknown.json()["values"]) == (200, [])


# --- keys -----------------------------------------------------------------------------------------------------------


def _with(github: GithubPlane, current: str, coming: str | None = None, previous: str | None = None) -> Any:
    return replace(github.plane.services, seals=Seals(SharedSecret(VARIABLE, current, coming, previous)))


async def _kids(github: GithubPlane) -> list[str]:
    return [row["kid"] for row in await github.plane.sql("SELECT kid FROM org_masks")]


async def test_through_a_rotation_a_value_is_readable_and_ends_under_the_new_key(github: GithubPlane) -> None:
    await put(github, "key", VALUE)
    org = await id_of(github, "octo-org")
    await github.plane.sql("DELETE FROM org_masks")
    sealed = Seals(SharedSecret(VARIABLE, OLD)).seal(VALUE.encode(), f"org_masks/{org}/key")
    await github.plane.sql(
        "INSERT INTO org_masks (org_id, name, kid, sealed, size_bytes, lines) VALUES ($1, 'key', $2, $3, 28, 1)",
        org, sealed.kid, sealed.box,
    )  # fmt: skip

    await reseal_masks(_with(github, OLD, coming=NEW))
    assert await _kids(github) == [sealed.kid]
    await reseal_masks(_with(github, NEW, previous=OLD))
    [kid] = await _kids(github)
    assert kid != sealed.kid
    for services in (_with(github, OLD, coming=NEW), _with(github, NEW, previous=OLD), _with(github, NEW)):
        assert await read_masks(services, org) == [VALUE]  # a replica that was not restarted yet among them
    assert await _kids(github) == [kid]


async def test_a_value_whose_secret_is_gone_is_told_in_the_log_and_hides_no_other(github: GithubPlane) -> None:
    await put(github, "good", VALUE)
    org = await id_of(github, "octo-org")
    lost = Seals(SharedSecret(VARIABLE, NEXT)).seal(b"never-to-be-read", f"org_masks/{org}/lost")
    await github.plane.sql(
        "INSERT INTO org_masks (org_id, name, kid, sealed, size_bytes, lines) VALUES ($1, 'lost', $2, $3, 16, 1)",
        org, lost.kid, lost.box,
    )  # fmt: skip
    with capture_logs() as logs:
        assert await read_masks(github.plane.services, org) == [VALUE]
    assert [(entry["event"], entry["mask"]) for entry in logs] == [("org.mask_unreadable", "lost")]


def test_a_sealed_value_opens_in_its_own_place_only() -> None:
    seals = Seals(SharedSecret(VARIABLE, OLD))
    sealed = seals.seal(b"value", "org_masks/1/key")
    assert seals.open(sealed, "org_masks/1/key") == b"value"
    assert seals.open(sealed, "org_masks/2/key") is None
    assert seals.open(Sealed(sealed.kid, sealed.box[:-1] + b"\0\0"), "org_masks/1/key") is None
    assert seals.open(Sealed(sealed.kid, b"short"), "org_masks/1/key") is None
    assert seals.seal(b"value", "org_masks/1/key").box != sealed.box
    assert "value" not in repr(sealed)
