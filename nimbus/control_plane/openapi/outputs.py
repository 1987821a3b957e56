"""What services ask about the output of jobs and machines, and are told. Called by jobs_api.py and machinelinks.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from nimbus.control_plane.openapi.fields import Id, said
from nimbus.control_plane.openapi.jobs import JobOutput
from nimbus.control_plane.openapi.operation import Access, Answer, Operation


@dataclass(frozen=True)
class JobOutputs:
    """The same of many jobs."""

    jobs: list[JobOutput]


@dataclass(frozen=True)
class MachineJob:
    """Which job a machine runs under a fence."""

    machine_id: Id
    fence: Id
    org_id: Id
    job_id: Annotated[Id | None, said("null while a runner waits for one")]
    repo_id: Annotated[Id | None, said("null where the job has none")]
    run_attempt: Annotated[int | None, said("GitHub's count of the run; null for jobs of our own API")]


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
GET_MACHINE_JOB = Operation(
    "getMachineJob",
    "Which job a machine runs under a fence",
    Access.SERVICE,
    {
        200: Answer(
            "the job, null while there is none",
            MachineJob,
            {"machine_id": 34, "fence": 1, "org_id": 1, "job_id": 12, "repo_id": 3, "run_attempt": 1},
        )
    },
    paths={"machine_id": "of the lease", "fence": "of the lease"},
)
