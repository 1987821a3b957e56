"""Holds what a control plane answers to its own OpenAPI document: status, media type, headers and every field.

plane.py and github_plane.py hang it on their clients, so that each test that asks something checks the document too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
from jsonschema import Draft202012Validator, FormatChecker

from nimbus.control_plane.openapi.document import build_document
from nimbus.runtime.serving import App

Json = dict[str, Any]
_OF_ANY_ROUTE = frozenset({405})  # of the framework, for a method that the path does not have


@dataclass
class Held:
    """One application's document."""

    document: Json
    _validators: dict[str, Draft202012Validator] = field(default_factory=dict)

    async def check(self, response: httpx2.Response) -> None:
        """Fails the test where the answer is none that the document has."""
        await response.aread()
        request = response.request
        operation = self._find(request.method.lower(), request.url.path)
        if operation is None or response.status_code in _OF_ANY_ROUTE:
            return
        told = self._resolve(operation["responses"].get(str(response.status_code)))
        where = f"{request.method} {request.url.path} answered {response.status_code}"
        assert told is not None, f"{where}, which the document does not know: {response.text[:500]}"
        for name, header in told.get("headers", {}).items():
            assert not header["required"] or name in response.headers, f"{where} without {name}"
        self._check_content(where, told.get("content"), response.headers, response.content)
        body = operation.get("requestBody", {"required": False})
        if response.status_code < 300 and (body["required"] or ("content" in body and request.content)):
            self._check_content(f"the body that {where}", operation["requestBody"]["content"], None, request.content)

    def _find(self, method: str, path: str) -> Json | None:
        found = [
            (pattern.count("{"), operations[method])
            for pattern, operations in self.document["paths"].items()
            if method in operations and re.fullmatch(re.sub(r"\{[a-z_]+\}", "[^/]+", pattern), path)
        ]
        return min(found, key=lambda each: each[0])[1] if found else None

    def _resolve(self, told: Json | None) -> Json | None:
        if told is None or "$ref" not in told:
            return told
        found: Json = self.document["components"]["responses"][told["$ref"].rpartition("/")[2]]
        return found

    def _check_content(self, where: str, content: Json | None, headers: Mapping[str, str] | None, raw: bytes) -> None:
        if content is None:
            assert raw == b"", f"{where} with a body that the document does not know"
            return
        [(media_type, described)] = content.items()
        if headers is not None:
            assert headers["content-type"].partition(";")[0] == media_type, where
        if media_type == "application/json":
            problems = [
                f"{where}: {problem.json_path}: {problem.message[:300]}"
                for problem in self._validator(described["schema"]).iter_errors(json.loads(raw))
            ]
            assert not problems, "\n".join(problems)

    def _validator(self, schema: Json) -> Draft202012Validator:
        key = json.dumps(schema)
        if key not in self._validators:
            whole = {**close(schema), "components": {"schemas": close(self.document["components"]["schemas"])}}
            self._validators[key] = Draft202012Validator(whole, format_checker=FormatChecker())
        return self._validators[key]


def close(value: Any) -> Any:
    """Every object with no fields but those described: clients pass over more, the tests do not."""
    if isinstance(value, dict):
        closed = {name: close(each) for name, each in value.items()}
        if isinstance(value.get("properties"), dict) and value.get("type") == "object":
            closed.setdefault("additionalProperties", False)
        return closed
    return [close(each) for each in value] if isinstance(value, list) else value


_KNOWN: dict[frozenset[str], Held] = {}


def hold(http: httpx2.AsyncClient, app: App) -> None:
    """Check every answer that this client gets; the document of the same routes is made once."""
    routes = frozenset(f"{rule.rule} {sorted(rule.methods or ())}" for rule in app.url_map.iter_rules())
    if routes not in _KNOWN:
        _KNOWN[routes] = Held(build_document(app))
    http.event_hooks["response"].append(_KNOWN[routes].check)
