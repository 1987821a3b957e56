"""The API called by schemathesis, rightly and wrongly: no 5xx, and every answer as the document says.

A minute of it; `make fuzz-api` goes on for longer.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.apifuzz import AS_TENANT, fuzz, open_target

pytestmark = [pytest.mark.services, pytest.mark.slow]

OPERATOR_S = 40
TENANT_S = 20
# a few of each route's, over and over until the time is spent; the systematic ones take minutes: make fuzz-api
SHORT = ("--phases", "examples,fuzzing", "--max-examples", "4")


def test_no_call_of_the_operators_crashes_the_api_or_is_answered_otherwise_than_documented(
    tmp_path: Path, database_dsn: str, redis_url: str
) -> None:
    with ExitStack() as stack:
        target = open_target(stack, tmp_path, database_dsn, redis_url)
        run = fuzz(target, tmp_path, target.config(), OPERATOR_S, *SHORT)

    assert run.returncode == 0, run.stdout


def test_no_call_of_a_tenants_crashes_the_api_or_is_answered_otherwise_than_documented(
    tmp_path: Path, database_dsn: str, redis_url: str
) -> None:
    with ExitStack() as stack:
        target = open_target(stack, tmp_path, database_dsn, redis_url)
        run = fuzz(target, tmp_path, target.config(org_id=1), TENANT_S, *AS_TENANT, *SHORT)

    assert run.returncode == 0, run.stdout
