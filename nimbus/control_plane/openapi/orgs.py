"""What the routes of orgs take and answer. Called by orgs_api.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar

from nimbus.control_plane.jobs.submission import MAX_PRIORITY
from nimbus.control_plane.openapi.fields import (
    CLOSED,
    MIN_DISK_MIB,
    MOST_DISK_MIB,
    MOST_MEM_MIB,
    Count,
    Id,
    ImageName,
    JsonObject,
    said,
    within,
)
from nimbus.control_plane.openapi.operation import Access, Answer, Body, Operation
from nimbus.control_plane.orgs.orgs import WEIGHTS
from nimbus.model.labels import Arch
from nimbus.model.vm import MAX_CPUS, MIN_MEM_MIB

_MOST = 1_000_000


@dataclass(frozen=True)
class OrgHolds:
    """What an org's machines take now."""

    machines: Count
    cpus: Count
    queued: Count


@dataclass(frozen=True)
class Installation:
    """Where the App is installed for the org."""

    installation_id: Id
    suspended: bool


@dataclass(frozen=True)
class ForgeProblem:
    """What GitHub refuses, and who must act."""

    installation_id: Id
    repo: str | None
    kind: str
    task: str
    means: str
    said: Annotated[str, said("GitHub's own words")]
    since: datetime
    retry_at: datetime | None


@dataclass(frozen=True)
class LabelView:
    """An org's own word for a machine."""

    label: str
    cpus: Count
    mem_mib: Count
    disk_mib: Count
    arch: Arch
    image: str | None
    max_machines: Count | None
    priority: int


@dataclass(frozen=True)
class OrgView:
    """An org, its limits and what it holds."""

    org_id: Id
    forge: str
    login: str
    max_machines: Annotated[Count | None, said("null: no limit but the hosts'")]
    max_cpus: Count | None
    runner_group_id: Annotated[Id | None, said("null: NIMBUS_RUNNER_GROUP_ID")]
    weight: Annotated[int, said("its share of CPUs against other orgs; 100 where nobody said")]
    holds: OrgHolds
    installations: list[Installation]
    problems: list[ForgeProblem]


@dataclass(frozen=True)
class OrgPage(OrgView):
    """An org with its labels."""

    labels: list[LabelView]


@dataclass(frozen=True)
class OrgList:
    """The orgs that the token may see."""

    orgs: list[OrgView]


@dataclass(frozen=True)
class LabelList:
    """The org's own labels."""

    labels: list[LabelView]


@dataclass(frozen=True)
class OrgLimits:
    """What to change: a field that is left out stays, null takes a limit away."""

    __pydantic_config__: ClassVar = CLOSED

    max_machines: Annotated[int, within(0, _MOST)] | None = None
    max_cpus: Annotated[int, within(0, _MOST)] | None = None
    runner_group_id: Id | None = None
    weight: Annotated[int, within(*WEIGHTS, "its share of CPUs against other orgs; null: 100")] | None = None


@dataclass(frozen=True)
class LabelSetting:
    """The machine that a label is to stand for."""

    __pydantic_config__: ClassVar = CLOSED

    cpus: Annotated[int, within(1, MAX_CPUS)]
    mem_mib: Annotated[int, within(MIN_MEM_MIB, MOST_MEM_MIB)]
    disk_mib: Annotated[int, within(MIN_DISK_MIB, MOST_DISK_MIB)] | None = None
    arch: Arch | None = None
    image: ImageName | None = None
    max_machines: Annotated[int, within(0, _MOST)] | None = None
    priority: Annotated[int, within(-MAX_PRIORITY, MAX_PRIORITY, "among the org's own machines; null: 0")] | None = None


@dataclass(frozen=True)
class LabelRemoved:
    """The label that is gone."""

    label: str
    removed: bool


_ORG = {"name": "our id of the org, or its login"}
_LABEL = {**_ORG, "alias": "the label"}
_LABEL_EXAMPLE: JsonObject = {
    "label": "large",
    "cpus": 8,
    "mem_mib": 16384,
    "disk_mib": 20480,
    "arch": "x64",
    "image": None,
    "max_machines": 4,
    "priority": 0,
}
_ORG_EXAMPLE: JsonObject = {
    "org_id": 1,
    "forge": "local",
    "login": "local",
    "max_machines": None,
    "max_cpus": 16,
    "runner_group_id": None,
    "weight": 100,
    "holds": {"machines": 1, "cpus": 2, "queued": 0},
    "installations": [],
    "problems": [],
}

LIST_ORGS = Operation(
    "listOrgs",
    "The orgs that the token may see",
    Access.ADMIN,
    {200: Answer("by name", OrgList, {"orgs": [_ORG_EXAMPLE]})},
)
GET_ORG = Operation(
    "getOrg",
    "One org with its labels",
    Access.ADMIN,
    {200: Answer("the org", OrgPage, {**_ORG_EXAMPLE, "labels": [_LABEL_EXAMPLE]})},
    paths=_ORG,
)
LIMIT_ORG = Operation(
    "limitOrg",
    "Set or take away an org's limits",
    Access.WRITE,
    {200: Answer("the org as it is now", OrgPage, {**_ORG_EXAMPLE, "labels": []})},
    body=Body(OrgLimits, {"max_cpus": 16}),
    paths=_ORG,
    details="A token of the org itself may lower what limits it, and not raise it.",
)
LIST_LABELS = Operation(
    "listLabels",
    "An org's own labels",
    Access.ADMIN,
    {200: Answer("by name", LabelList, {"labels": [_LABEL_EXAMPLE]})},
    paths=_ORG,
)
SET_LABEL = Operation(
    "setLabel",
    "Make or change a label of an org",
    Access.WRITE,
    {200: Answer("the label", LabelView, _LABEL_EXAMPLE)},
    body=Body(LabelSetting, {"cpus": 8, "mem_mib": 16384, "max_machines": 4}),
    patterns={"alias": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"},
    errors=frozenset({409}),
    paths=_LABEL,
    details="The org's queued jobs are judged anew.",
)
REMOVE_LABEL = Operation(
    "removeLabel",
    "Take a label of an org away",
    Access.WRITE,
    {200: Answer("it is gone", LabelRemoved, {"label": "large", "removed": True})},
    paths=_LABEL,
    details="Jobs that still wait for it are refused, and say so.",
)
