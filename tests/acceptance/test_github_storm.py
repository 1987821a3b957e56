"""No job stuck, no runner leaked, no call too many: 500 jobs of three organisations through GitHub's bad days.

Once with every source of demand and every fault, and three times with one source alone: webhooks, redelivery, polling.
A fault that only another source could mend (a lost delivery, where webhooks are all there is) is left out there.
`make test` sends fewer jobs through the three: `make test-storms` sends 500 through all, and NIMBUS_TEST_STORM_JOBS as
many as you like.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.acceptance.githubstorm import Weather, judge, judge_calls, report, ride_out

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.slow]

ASKED = os.environ.get("NIMBUS_TEST_STORM_JOBS")
JOBS, ALONE = int(ASKED or 500), int(ASKED or 150)
NO_REDELIVERY = {"NIMBUS_REDELIVERY_INTERVAL": "0"}
NO_POLL = {"NIMBUS_POLL_INTERVAL": "0"}
REST = {
    "secondary_limit": 0.01,
    "retry_after_s": 1,
    "outage": 0.01,
    "outage_calls": 3,
    "token_expired": 0.01,
    "dropped": 0.005,
    "slow": 0.02,
    "slow_s": [0.1, 1.0],
}
RUNNERS = {
    "stolen": 0.03,
    "taken_before_delete": 0.2,
    "busy_refused": 0.05,
    "busy_refused_s": 2,
    "assignment_lost": 0.03,
    "listed_late": 0.1,
    "list_lag_s": [0.5, 2.0],
}
ORDER = {"duplicated": 0.1, "reordered": 0.1, "reorder_within_s": 1.0, "late": 0.1, "late_s": [0.5, 5.0]}

STORMS = [
    Weather(
        "everything at once",
        {"seed": 1, "deliveries": {"lost": 0.3, "unlisted": 0.02, **ORDER}, "rest": REST, "runners": RUNNERS},
    ),
    Weather(
        "webhooks alone",
        {"seed": 2, "deliveries": {**ORDER, "answered_late": 0.02}, "rest": REST, "runners": RUNNERS},
        {**NO_REDELIVERY, **NO_POLL},
    ),
    Weather(
        "redelivery alone",
        {"seed": 3, "deliveries": {"lost": 1.0, "redeliveries_pass": True}, "rest": REST, "runners": RUNNERS},
        NO_POLL,
    ),
    Weather(
        "polling alone",
        {"seed": 4, "rest": REST, "runners": RUNNERS},
        NO_REDELIVERY,
        delivers=False,
    ),
]


@pytest.mark.parametrize("weather", STORMS, ids=lambda weather: weather.name.replace(" ", "-"))
def test_every_job_ends_right_and_github_is_left_clean(
    weather: Weather, tmp_path: Path, database_dsn: str, redis_url: str
) -> None:
    jobs = JOBS if weather is STORMS[0] else ALONE
    found = ride_out(weather, jobs, 5, tmp_path, database_dsn, redis_url)
    report(weather, found)
    assert judge(found) == []
    assert judge_calls(found) == []
