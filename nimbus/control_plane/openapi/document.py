"""The OpenAPI 3.1 document of an application, made of what its handlers declare. Pure: reads the routes, sends nothing.

A route without a declaration is left out, and a test names it. Called by route.py and by the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any

from werkzeug.routing import Rule

from nimbus.control_plane.openapi.fields import JsonObject, said
from nimbus.control_plane.openapi.operation import JSON, Access, Answer, Operation, operation_of
from nimbus.control_plane.openapi.schemas import Schemas
from nimbus.runtime.answers import ERROR_STATUS
from nimbus.runtime.serving import App
from nimbus.wire.fields import MAX_BIGINT

IMPLIED = frozenset({"HEAD", "OPTIONS"})  # the framework answers them for every route
_PLACE = re.compile(r"<(?:([a-z]+):)?([a-z_]+)>")
_TOKENS = {
    Access.ADMIN: ("admin",),
    Access.WRITE: ("admin",),
    Access.SERVICE: ("service",),
    Access.ENROLMENT: ("enrolment", "agent"),
    Access.AGENT: ("agent",),
    Access.METRICS: ("metrics",),
    Access.SIGNATURE: ("signature",),
}
_SCHEMES: JsonObject = {
    "admin": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "People and their programs: HS256 by NIMBUS_JWT_SECRET, audience nimbus-admin. `role` read or "
        "admin; with `org_id` it reaches that org alone.",
    },
    "service": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "Rooms of Nimbus: HS256 by NIMBUS_JWT_SECRET, audience nimbus-internal.",
    },
    "enrolment": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "An agent's first token: HS256 by NIMBUS_AGENT_TOKEN_SECRET, as `nimbus auth` mints it.",
    },
    "agent": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "An agent's short-lived token: EdDSA by a key of the key set, as enrolment gives it.",
    },
    "metrics": {"type": "http", "scheme": "bearer", "description": "NIMBUS_METRICS_TOKEN; this host needs none."},
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Hub-Signature-256",
        "description": "HMAC-SHA256 of the body by NIMBUS_GITHUB_WEBHOOK_SECRET, as GitHub sends it.",
    },
}
_TAGS = {
    "jobs": "Jobs: submit, look, cancel",
    "orgs": "Organisations: what they hold, their limits, their own labels",
    "agents": "For host agents",
    "webhooks": "For GitHub",
    "internal": "For other rooms of Nimbus; may change with any release",
    "operations": "For whoever runs the control plane",
}
_TOLD = {
    400: "the request is wrong: the message says in what",
    401: "no valid credential came with the request",
    403: "the credential does not reach this far",
    404: "there is no such thing, or not for this credential",
    408: "the body took too long to arrive",
    409: "somebody else did it first, or holds the lease: read the current state and decide again",
    410: "it is no longer wanted: stop without complaint",
    413: "the body is too large",
    429: "too many requests: wait as long as Retry-After says",
    503: "a service that this needs is away: try again as Retry-After says",
}
_FRAMEWORK = {408: "request_timeout", 413: "request_entity_too_large"}


@dataclass(frozen=True)
class Error:
    """The one form of an error."""

    error: Annotated[str, said("a word for programs")]
    message: Annotated[str, said("who must do what, for people")]


@dataclass(frozen=True)
class Declared:
    """One route with what its handler declares."""

    path: str  # as OpenAPI writes it
    method: str
    places: tuple[tuple[str, bool], ...]  # path parameters: name, whether it is a number
    operation: Operation
    name: str
    tag: str


def build_document(app: App) -> JsonObject:
    """The document of all routes that are declared."""
    routes = list(find_declared(app))
    parameters = {repr(shape): shape for route in routes for shape in _parameter_shapes(route.operation)}.values()
    schemas = Schemas([Error, *parameters, *_shapes(routes)])
    paths: dict[str, JsonObject] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method] = _render_operation(route, schemas)
    schemas.forget(parameters)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Nimbus control plane",
            "version": version("nimbus"),
            "summary": "Self-hosted CI: one throw-away microVM per job",
            "description": "Errors have one form. Fields may be added to answers in any release: pass over what you do "
            "not know. Ids are 64-bit numbers; whole numbers are written without a fraction.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": told} for name, told in _TAGS.items()],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas.components,
            "responses": {_error_name(status): _render_error(status, schemas) for status in sorted(_TOLD)},
            "securitySchemes": _SCHEMES,
        },
    }


def find_routes(app: App) -> Iterator[tuple[Rule, str]]:
    """Every route of the application with each of its own methods."""
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - IMPLIED):
            yield rule, method


def render_path(rule: str) -> str:
    """`/api/jobs/<int:job_id>` as `/api/jobs/{job_id}`."""
    return _PLACE.sub(lambda place: f"{{{place[2]}}}", rule)


def find_declared(app: App) -> Iterator[Declared]:
    """Every route whose handler declares itself."""
    names: dict[str, int] = {}
    for rule, method in find_routes(app):
        operation = operation_of(app.view_functions[rule.endpoint])
        if operation is None:
            continue
        names[operation.name] = names.get(operation.name, 0) + 1
        again = names[operation.name]  # a handler that has two addresses
        yield Declared(
            path=render_path(rule.rule),
            method=method.lower(),
            places=tuple((place[2], place[1] == "int") for place in _PLACE.finditer(rule.rule)),
            operation=operation,
            name=operation.name if again == 1 else f"{operation.name}{again}",
            tag=_tag_of(rule.rule, operation),
        )


def _tag_of(path: str, operation: Operation) -> str:
    if operation.access is Access.SERVICE:
        return "internal"
    if operation.access is Access.SIGNATURE:
        return "webhooks"
    if operation.access in {Access.AGENT, Access.ENROLMENT}:
        return "agents"
    first = path.removeprefix("/api/").partition("/")[0]
    return {"jobs": "jobs", "orgs": "orgs"}.get(first, "operations")


def plan_errors(operation: Operation, places: Iterable[tuple[str, bool]]) -> frozenset[int]:
    """Pure: every error that the route may answer: its own, and those that follow from what it takes."""
    errors = set(operation.errors)
    if operation.access is not Access.PUBLIC:
        errors.add(401)
    if operation.access in {Access.ADMIN, Access.WRITE, Access.SERVICE}:
        errors.add(403)
    if operation.access is Access.WRITE:
        errors.add(409)  # a token that was good for one call
    if operation.query is not None or operation.body is not None:
        errors.add(400)
    if operation.body is not None:
        errors |= {408, 413}
    if any(places):
        errors.add(404)
    if operation.away:
        errors.add(503)
    return frozenset(errors)


def _shapes(routes: Iterable[Declared]) -> Iterator[Any]:
    for route in routes:
        if route.operation.body is not None:
            yield route.operation.body.shape
        for answer in route.operation.answers.values():
            if answer.shape is not None:
                yield answer.shape


def _parameter_shapes(operation: Operation) -> list[Any]:
    return [shape for shape in (operation.query, operation.headers) if shape is not None]


def _render_operation(route: Declared, schemas: Schemas) -> JsonObject:
    operation = route.operation
    rendered: JsonObject = {"operationId": route.name, "summary": operation.told, "tags": [route.tag]}
    if operation.details:
        rendered["description"] = operation.details
    if operation.access is Access.SERVICE:
        rendered["x-internal"] = True
    rendered["security"] = [{scheme: []} for scheme in _TOKENS.get(operation.access, ())]
    if operation.access is Access.METRICS:
        rendered["security"].append({})  # from this host
    parameters = [*_render_places(route), *_render_parameters(operation, schemas)]
    if parameters:
        rendered["parameters"] = parameters
    if operation.body is not None:
        content = {"schema": schemas.of(operation.body.shape), "example": operation.body.example}
        rendered["requestBody"] = {
            "required": operation.body.required,
            "content": {operation.body.content_type: content},
        }
    answers = {str(status): _render_answer(answer, schemas) for status, answer in operation.answers.items()}
    for status in sorted(plan_errors(operation, route.places)):
        answers[str(status)] = {"$ref": f"#/components/responses/{_error_name(status)}"}
    rendered["responses"] = answers
    return rendered


def _render_places(route: Declared) -> Iterator[JsonObject]:
    for name, is_number in route.places:
        number = {"type": "integer", "format": "int64", "minimum": 0, "maximum": MAX_BIGINT}
        text = {"type": "string", "minLength": 1}
        if name in route.operation.patterns:
            text["pattern"] = route.operation.patterns[name]
        schema: JsonObject = number if is_number else text
        told = route.operation.paths.get(name)
        rendered = {"name": name, "in": "path", "required": True, "schema": schema}
        yield rendered if told is None else {**rendered, "description": told}


def _render_parameters(operation: Operation, schemas: Schemas) -> Iterator[JsonObject]:
    for place, shape in (("query", operation.query), ("header", operation.headers)):
        for name, schema, required in () if shape is None else schemas.fields_of(shape):
            shown = name.replace("_", "-").title() if place == "header" else name
            described = {"description": schema.pop("description")} if "description" in schema else {}
            yield {"name": shown, "in": place, "required": required, **described, "schema": schema}


def _render_answer(answer: Answer, schemas: Schemas) -> JsonObject:
    rendered: JsonObject = {"description": answer.told}
    if answer.headers:
        rendered["headers"] = {name: _render_header(told) for name, told in answer.headers.items()}
    if answer.shape is not None:
        content: JsonObject = {"schema": schemas.of(answer.shape)}
        if answer.example is not None:
            content["example"] = answer.example
        rendered["content"] = {answer.content_type: content}
    return rendered


def _render_header(told: str, schema: JsonObject | None = None) -> JsonObject:
    return {"description": told, "required": True, "schema": schema or {"type": "string"}}


def _render_error(status: int, schemas: Schemas) -> JsonObject:
    words = [code for _, known, code in ERROR_STATUS if known == status] or [_FRAMEWORK[status]]
    rendered: JsonObject = {
        "description": _TOLD[status],
        "content": {JSON: {"schema": schemas.of(Error), "example": {"error": words[0], "message": _TOLD[status]}}},
    }
    if status == 401:
        rendered["headers"] = {"WWW-Authenticate": _render_header("how to come in", {"const": "Bearer"})}
    if status in {429, 503}:
        seconds = {"type": "integer", "minimum": 1}
        rendered["headers"] = {"Retry-After": _render_header("seconds to wait", seconds)}
    return rendered


def _error_name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")
