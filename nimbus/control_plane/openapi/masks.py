"""What the routes of masks take and answer. Called by masks_api.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field

from nimbus.control_plane.openapi.fields import CLOSED, Count, Id, JsonObject, said
from nimbus.control_plane.openapi.operation import Access, Answer, Body, Operation
from nimbus.control_plane.orgs.masks import LINE_PATTERN, MAX_VALUE_CHARS, MIN_CHARS, NAME_PATTERN


@dataclass(frozen=True)
class MaskView:
    """A registered secret: all that is told of it."""

    name: str
    bytes: Count
    lines: Annotated[Count, said(f"of {MIN_CHARS} bytes or more: these are hidden")]
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True)
class MaskList:
    """The org's registered secrets."""

    masks: list[MaskView]


@dataclass(frozen=True)
class MaskSetting:
    """A value to hide."""

    __pydantic_config__: ClassVar = CLOSED

    value: Annotated[
        str,
        Field(
            max_length=MAX_VALUE_CHARS,
            description=f"never told again; it needs a line of {MIN_CHARS} characters",
            json_schema_extra={"pattern": rf"^[^\u0000]*{LINE_PATTERN}[^\u0000]*$"},
        ),
    ]


@dataclass(frozen=True)
class MaskRemoved:
    """The secret that is hidden no more."""

    name: str
    removed: bool


@dataclass(frozen=True)
class MaskValues:
    """What to hide in an org's output."""

    org_id: Id
    values: list[str]


_ORG = {"name": "our id of the org, or its login"}
_MASK = {**_ORG, "mask": "its name"}
_PATTERN = {"mask": NAME_PATTERN}
_EXAMPLE: JsonObject = {
    "name": "deploy-key",
    "bytes": 40,
    "lines": 1,
    "created_at": "2026-11-22T10:00:00+00:00",
    "changed_at": "2026-11-22T10:00:00+00:00",
}

LIST_MASKS = Operation(
    "listMasks",
    "What an org registered to be hidden in its jobs' output",
    Access.ADMIN,
    {200: Answer("by name, without the values", MaskList, {"masks": [_EXAMPLE]})},
    paths=_ORG,
)
SET_MASK = Operation(
    "setMask",
    "Register a secret of an org, or change it",
    Access.WRITE,
    {200: Answer("what is told of it", MaskView, _EXAMPLE)},
    body=Body(MaskSetting, {"value": "correct-horse-battery-staple"}),
    patterns=_PATTERN,
    errors=frozenset({409}),
    paths=_MASK,
    details="It is hidden in rows that come in half a minute from now and later; the value is never told again.",
)
REMOVE_MASK = Operation(
    "removeMask",
    "Forget a registered secret of an org",
    Access.WRITE,
    {200: Answer("it is gone", MaskRemoved, {"name": "deploy-key", "removed": True})},
    paths=_MASK,
)
READ_MASKS = Operation(
    "readMasks",
    "What to hide in an org's output, in clear",
    Access.SERVICE,
    {200: Answer("none for an org that is not known", MaskValues, {"org_id": 1, "values": ["correct-horse"]})},
    paths={"org_id": "our id of the org"},
)
