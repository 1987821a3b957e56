"""The OpenAPI document: all routes and no other, valid, and true of what the application answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from nimbus.control_plane.app import open_app
from nimbus.control_plane.openapi.document import build_document, find_routes, render_path
from nimbus.control_plane.settings import Settings
from tests.forge import APP_ID, app_key
from tests.services import PostgresServer, RedisServer, open_schema
from tests.unit.control_plane.plane import open_plane

pytestmark = pytest.mark.services

Json = dict[str, Any]
SECRET = "openapi-test-secret-" + "s" * 32


@dataclass(frozen=True)
class Described:
    """The whole application's document, and the routes that it has."""

    document: Json
    routes: frozenset[tuple[str, str]]


@pytest.fixture(scope="module")
def described(postgres_server: PostgresServer, shared_redis: RedisServer) -> Iterator[Described]:
    """The application as the process opens it."""
    with open_schema(postgres_server) as dsn, pytest.MonkeyPatch.context() as environment:
        settings = {
            "NIMBUS_DATABASE_URL": dsn,
            "NIMBUS_REDIS_URL": shared_redis.url,
            "NIMBUS_GITHUB_APP_ID": APP_ID,
            "NIMBUS_GITHUB_APP_PRIVATE_KEY": app_key().private_pem,
            "NIMBUS_GITHUB_WEBHOOK_SECRET": SECRET,
            "NIMBUS_GITHUB_API_URL": "http://127.0.0.1:9",
            "NIMBUS_JWT_SECRET": SECRET + "j",
            "NIMBUS_AGENT_TOKEN_SECRET": SECRET + "a",
            "NIMBUS_CACHE_SHARED_SECRET": SECRET + "c",
            "NIMBUS_PUBLIC_BASE_URL": "http://127.0.0.1",
        }
        for name, value in settings.items():
            environment.setenv(name, value)
        yield trio.run(_describe, Settings())


async def _describe(settings: Settings) -> Described:
    with trio.fail_after(60):
        async with open_app(settings, trio.Event()) as app:
            routes = frozenset((render_path(rule.rule), method) for rule, method in find_routes(app))
            return Described(json.loads(json.dumps(build_document(app))), routes)


def operations_of(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_the_document_has_every_route_of_the_application_and_no_other(described: Described) -> None:
    told = {(path, method.upper()) for path, method, _ in operations_of(described.document)}

    assert told == described.routes


def test_the_document_is_valid_openapi_3_1(described: Described) -> None:
    document = described.document

    assert document["openapi"].startswith("3.1.")
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_every_operation_has_a_name_that_makes_a_method_of_a_client(described: Described) -> None:
    names = [operation["operationId"] for _, _, operation in operations_of(described.document)]

    assert [name for name in names if not re.fullmatch(r"[a-z]+[A-Z][A-Za-z0-9]*", name)] == []
    assert len(set(names)) == len(names)


def test_every_component_has_a_plain_name(described: Described) -> None:
    names = list(described.document["components"]["schemas"])

    assert [name for name in names if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name)] == []


def test_every_example_is_one(described: Described) -> None:
    document = described.document
    components = {"components": document["components"]}
    contents: list[tuple[str, Json]] = []
    for path, method, operation in operations_of(document):
        answers = [(status, each) for status, each in operation["responses"].items() if "$ref" not in each]
        answers += [("body", operation["requestBody"])] if "requestBody" in operation else []
        contents += [
            (f"{method} {path} {name}", content["application/json"])
            for name, answer in answers
            if "application/json" in (content := answer.get("content", {}))
        ]

    wrong = [
        f"{where}: {problem.json_path}: {problem.message}"
        for where, content in contents
        for problem in Draft202012Validator(content["schema"] | components).iter_errors(content.get("example", {}))
    ]
    lacking = [where for where, content in contents if "example" not in content and "openapi.json" not in where]
    assert wrong == []
    assert lacking == []


def test_every_route_that_needs_a_credential_says_which_and_answers_401(described: Described) -> None:
    document = described.document

    schemes = document["components"]["securitySchemes"]
    for path, _, operation in operations_of(document):
        assert {name for each in operation["security"] for name in each} <= set(schemes), path
        assert bool(operation["security"]) == ("401" in operation["responses"]), path


async def test_anybody_may_read_the_document_and_asks_again_for_nothing(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        first = await plane.http.get("/api/openapi.json")
        again = await plane.http.get("/api/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
        other = await plane.http.get("/api/openapi.json", headers={"If-None-Match": '"of another release"'})

    assert (first.status_code, again.status_code, other.status_code) == (200, 304, 200)
    assert first.json()["info"]["title"] == "Nimbus control plane"
    assert again.content == b""
    assert again.headers["ETag"] == first.headers["ETag"]


async def test_a_method_that_a_path_does_not_have_is_told_which_it_has(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        answer = await plane.http.delete("/api/jobs/recent")

    assert answer.status_code == 405
    assert "GET" in answer.headers["Allow"]
