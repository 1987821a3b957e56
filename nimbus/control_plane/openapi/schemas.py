"""JSON schemas of the shapes, by pydantic, as components of the document. Called by document.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from nimbus.control_plane.openapi.fields import JsonObject

_REFERENCE = "#/components/schemas/{model}"


class Schemas:
    """The schemas of these shapes: each by reference, and the components that they refer to."""

    def __init__(self, shapes: Iterable[Any]) -> None:
        wanted = {repr(shape): shape for shape in shapes}
        inputs = [(name, "validation", TypeAdapter(shape)) for name, shape in wanted.items()]
        found, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE)  # type: ignore[arg-type]
        self._by_shape = {name: _tidy(schema) for (name, _), schema in found.items()}
        self.components: JsonObject = {
            name: _tidy(schema) for name, schema in sorted(definitions.get("$defs", {}).items())
        }

    def of(self, shape: Any) -> JsonObject:
        """The schema of one shape, a reference where it is a component."""
        schema: JsonObject = self._by_shape[repr(shape)]
        return schema

    def fields_of(self, shape: Any) -> list[tuple[str, JsonObject, bool]]:
        """A dataclass' fields as parameters: name, schema, whether it must be there."""
        schema = self.of(shape)
        name = schema.get("$ref", "").rpartition("/")[2]
        schema = self.components[name] if name else schema
        required = set(schema.get("required", ()))
        return [(name, _without_null(field), name in required) for name, field in schema["properties"].items()]

    def forget(self, shapes: Iterable[Any]) -> None:
        """Leave the components of these out: their fields stand as parameters."""
        for shape in shapes:
            self.components.pop(self.of(shape).get("$ref", "").rpartition("/")[2], None)


def _tidy(value: Any) -> Any:
    """Without what pydantic adds by itself and nobody reads: a title for each field, a default that says nothing."""
    if isinstance(value, Mapping):
        kept = {name: _tidy(each) for name, each in value.items() if not _is_noise(name, each)}
        if isinstance(value.get("properties"), Mapping):
            kept["properties"] = {name: _tidy(each) for name, each in value["properties"].items()}
        return kept
    return [_tidy(each) for each in value] if isinstance(value, list) else value


def _is_noise(name: str, value: object) -> bool:
    return (name == "title" and isinstance(value, str)) or (name == "default" and value is None)


def _without_null(schema: JsonObject) -> JsonObject:
    """A parameter is there or not: it has no null."""
    choices = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if len(choices) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **choices[0]}
