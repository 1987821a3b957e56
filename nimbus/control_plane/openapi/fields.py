"""The kinds of values that the API's shapes are made of: ids, texts, counts, with the limits that the parsers have.

Called by the shapes beside it; the parsers themselves are wire/fields.py's.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.fields import FieldInfo

from nimbus.model.labels import MIB_PER_GB
from nimbus.wire.fields import MAX_BIGINT, MAX_TEXT

Id = Annotated[int, Field(ge=1, le=MAX_BIGINT, json_schema_extra={"format": "int64"})]
Count = Annotated[int, Field(ge=0, le=MAX_BIGINT, json_schema_extra={"format": "int64"})]
UnixMs = Annotated[int, Field(description="Unix milliseconds", json_schema_extra={"format": "int64"})]
Digest = Annotated[str, Field(description="sha256", pattern=r"^[0-9a-f]{64}$")]
# what check_image of the parsers takes: begins and ends with a letter or digit, never two dots in a row
ImageName = Annotated[str, Field(max_length=255, pattern=r"^[A-Za-z0-9](?:(?:\.?[_/:@-])*\.?[A-Za-z0-9])*$")]
Uuid = Annotated[str, Field(json_schema_extra={"format": "uuid"})]

# what NIMBUS_LABEL_MAX_MEMORY_GB and NIMBUS_LABEL_MAX_DISK_GB may be at most: an operator's own limits are mostly lower
MOST_MEM_MIB = 16384 * MIB_PER_GB
MOST_DISK_MIB = 65536 * MIB_PER_GB
MIN_DISK_MIB = 16  # as model/vm.py's Shape demands

CLOSED = ConfigDict(extra="forbid")  # a body whose parser refuses fields that it does not know


def storable(max_chars: int = MAX_TEXT, description: str | None = None, *, empty: bool = False) -> FieldInfo:
    """Text that PostgreSQL takes: bounded, without NUL."""
    info: FieldInfo = Field(
        min_length=0 if empty else 1,
        max_length=max_chars,
        description=description,
        json_schema_extra={"pattern": r"^[^\u0000]*$"},
    )
    return info


def within(low: float, high: float, description: str | None = None) -> FieldInfo:
    """A number from `low` to `high`, both included."""
    info: FieldInfo = Field(ge=low, le=high, description=description)
    return info


def said(description: str) -> FieldInfo:
    """Words for the reader of the document."""
    info: FieldInfo = Field(description=description)
    return info


JsonObject = dict[str, Any]
