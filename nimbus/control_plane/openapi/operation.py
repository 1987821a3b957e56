"""What one route takes, who may call it and what it may answer: declared beside its handler, read by document.py.

Shapes are frozen dataclasses (or TypedDicts) whose JSON schema pydantic derives. Nothing here is enforced by itself:
the tests hold every answer of a running control plane to it. Called by the modules that have routes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

View = TypeVar("View", bound=Callable[..., Any])
_ATTRIBUTE = "__nimbus_operation__"

JSON = "application/json"


class Access(enum.Enum):
    """Who may call: each is a security scheme of the document."""

    PUBLIC = enum.auto()  # anybody
    ADMIN = enum.auto()  # people and their programs; a token of an org sees that org
    WRITE = enum.auto()  # the same, with role=admin
    SERVICE = enum.auto()  # another room of Nimbus
    ENROLMENT = enum.auto()  # an agent that starts, or renews its token
    AGENT = enum.auto()
    METRICS = enum.auto()  # Prometheus, or whoever is on this host
    SIGNATURE = enum.auto()  # GitHub


@dataclass(frozen=True)
class Answer:
    """One answer. `shape` None: no body; `str`: plain text."""

    told: str
    shape: Any = None
    example: object = None
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)  # name: what it tells


@dataclass(frozen=True)
class Body:
    """What a request carries."""

    shape: Any
    example: object
    content_type: str = JSON
    required: bool = True  # False: nothing at all is taken, too


@dataclass(frozen=True)
class Operation:
    """One route. `name` becomes the method of a generated client.

    Of the errors only those are named that do not follow from the rest: see document.py's `plan_errors`.
    """

    name: str
    told: str
    access: Access
    answers: Mapping[int, Answer]
    body: Body | None = None
    query: Any = None  # a dataclass: one parameter for each field
    headers: Any = None  # the same
    errors: frozenset[int] = frozenset()
    details: str = ""
    paths: Mapping[str, str] = field(default_factory=dict)  # path parameter: what it names
    patterns: Mapping[str, str] = field(default_factory=dict)  # path parameter: what it must match
    away: bool = True  # 503 while a service that it needs is away


def declare(operation: Operation) -> Callable[[View], View]:
    """Attach the operation to its handler; stands right below the route's own decorator."""

    def attach(view: View) -> View:
        setattr(view, _ATTRIBUTE, operation)
        return view

    return attach


def operation_of(view: Callable[..., Any]) -> Operation | None:
    """What was declared of this handler."""
    declared: Operation | None = getattr(view, _ATTRIBUTE, None)
    return declared
