"""What the routes of health, metrics and this document answer. Called by app.py and route.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nimbus.control_plane.openapi.fields import JsonObject, said
from nimbus.control_plane.openapi.operation import Access, Answer, Operation


@dataclass(frozen=True)
class Alive:
    """The process answers."""

    status: Literal["ok"]


@dataclass(frozen=True)
class Ready:
    """The database answers; `polling`: Redis does not, and work is found some seconds later."""

    status: Literal["ready"]
    bell: Literal["redis", "polling"]


@dataclass(frozen=True)
class DocumentHeaders:
    """What a client knows already."""

    if_none_match: Annotated[str | None, said("the ETag of the last answer")] = None


GET_HEALTH = Operation(
    "getHealth",
    "Whether the process answers",
    Access.PUBLIC,
    {200: Answer("it does", Alive, {"status": "ok"})},
    away=False,
)
GET_READINESS = Operation(
    "getReadiness",
    "Whether it can work",
    Access.PUBLIC,
    {200: Answer("it can", Ready, {"status": "ready", "bell": "redis"})},
)
GET_METRICS = Operation(
    "getMetrics",
    "Metrics as Prometheus reads them",
    Access.METRICS,
    {200: Answer("the metrics", str, content_type="text/plain")},
)
GET_DOCUMENT = Operation(
    "getApiDocument",
    "This document",
    Access.PUBLIC,
    {
        200: Answer("the document", JsonObject, headers={"ETag": "of this version", "Cache-Control": "ask each time"}),
        304: Answer("it is as it was", headers={"ETag": "of this version", "Cache-Control": "ask each time"}),
    },
    headers=DocumentHeaders,
    away=False,
)
