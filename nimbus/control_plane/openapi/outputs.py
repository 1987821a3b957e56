"""What the question takes and answers where the output of many jobs lies. Called by jobs_api.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from nimbus.control_plane.openapi.jobs import JobOutput
from nimbus.control_plane.openapi.operation import Access, Answer, Operation


@dataclass(frozen=True)
class JobOutputs:
    """The same of many jobs."""

    jobs: list[JobOutput]


@dataclass(frozen=True)
class OutputsQuery:
    """Which jobs are asked about."""

    ids: Annotated[str, Field(pattern=r"^[0-9]{1,19}(,[0-9]{1,19}){0,199}$", description="our ids, with commas")]


LIST_JOBS_LEASES = Operation(
    "listJobsLeases",
    "The same of many jobs at once, those that do not exist left out",
    Access.SERVICE,
    {
        200: Answer(
            "every lease that these jobs' machines had",
            JobOutputs,
            {
                "jobs": [
                    {
                        "job_id": 12,
                        "org_id": 1,
                        "repo_id": None,
                        "state": "in_progress",
                        "machines": [{"machine_id": 34, "fence": 1}],
                    }
                ]
            },
        )
    },
    query=OutputsQuery,
    errors=frozenset({400}),
)
