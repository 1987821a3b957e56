"""What GitHub's REST API lists is read strictly, and one odd element never hides its neighbours."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbus.model.errors import Refused
from nimbus.model.job import JobState
from nimbus.wire import githubrest
from nimbus.wire.github import ForgeRepo

REPO = ForgeRepo(601, "hello", "octo-org/hello", True, 501, "octo-org")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
OWNER = {"id": 501, "login": "octo-org"}
RUNNER = {"id": 7, "name": "nimbus-1-1", "os": "linux", "status": "online", "busy": False, "runner_group_id": 1,
          "labels": [{"id": 1, "name": "nimbus", "type": "custom"}]}  # fmt: skip
DELIVERY = {"id": 12345678, "guid": "0b989ba4-242f-11e5-81e1-c7b6966d2516", "delivered_at": "2026-11-21T12:00:00Z",
            "redelivery": False, "duration": 0.27, "status": "Invalid HTTP Response: 502", "status_code": 502,
            "event": "workflow_job", "action": "queued", "installation_id": 77, "repository_id": 601}  # fmt: skip
INSTALLATION = {"id": 77, "account": OWNER, "app_id": 1, "suspended_at": None}
REPOSITORY = {"id": 601, "name": "hello", "full_name": "octo-org/hello", "private": True, "owner": OWNER,
              "archived": False, "pushed_at": "2026-11-21T12:00:00Z"}  # fmt: skip
RUN = {"id": 10, "run_attempt": 2, "status": "in_progress", "updated_at": "2026-11-21T12:00:00Z"}
JOB = {"id": 20, "run_id": 10, "run_attempt": 2, "name": "build", "workflow_name": "CI", "status": "queued",
       "conclusion": None, "labels": ["Nimbus", "X64"], "runner_id": None, "runner_name": None, "steps": [],
       "created_at": "2026-11-21T12:00:00Z", "started_at": "2026-11-21T12:00:00Z", "completed_at": None,
       "head_sha": "0" * 40, "head_branch": "main", "html_url": "https://github.example/j/20"}  # fmt: skip

Page = tuple[Callable[[bytes], tuple[Any, ...]], str | None, dict[str, Any]]
PAGES: list[Page] = [
    (githubrest.parse_runners, "runners", RUNNER),
    (githubrest.parse_deliveries, None, DELIVERY),
    (githubrest.parse_installations, None, INSTALLATION),
    (githubrest.parse_repositories, "repositories", REPOSITORY),
    (githubrest.parse_runs, "workflow_runs", RUN),
    (lambda body: githubrest.parse_jobs(body, REPO, 77), "jobs", JOB),
]


def page(key: str | None, *elements: object) -> bytes:
    return json.dumps(list(elements) if key is None else {"total_count": len(elements), key: elements}).encode()


def job(**fields: Any) -> Any:
    (seen,) = githubrest.parse_jobs(page("jobs", JOB | fields), REPO, 77)
    return seen


def test_a_runner_is_seen_with_its_state_and_labels() -> None:
    assert githubrest.parse_runners(page("runners", RUNNER)) == (
        githubrest.RunnerSeen(7, "nimbus-1-1", online=True, busy=False, labels=("nimbus",)),
    )


@pytest.mark.parametrize("busy", [True, None, "false", 0])
def test_a_runner_counts_as_busy_unless_github_says_no(busy: object) -> None:
    (seen,) = githubrest.parse_runners(page("runners", RUNNER | {"busy": busy}))
    assert seen.busy


def test_a_delivery_is_ok_by_its_status_code_alone() -> None:
    (failed,) = githubrest.parse_deliveries(page(None, DELIVERY))
    assert failed == githubrest.DeliverySeen(
        12345678, "0b989ba4-242f-11e5-81e1-c7b6966d2516", NOON, False, 502, "workflow_job", "queued", 77, False
    )
    for code, ok in ((200, True), (202, True), (302, False), (0, False), (None, False)):
        (seen,) = githubrest.parse_deliveries(page(None, DELIVERY | {"status_code": code}))
        assert seen.ok is ok


def test_a_delivery_without_action_or_installation_is_one_all_the_same() -> None:
    (seen,) = githubrest.parse_deliveries(page(None, DELIVERY | {"action": None, "installation_id": None}))
    assert (seen.action, seen.installation_id) == (None, None)


def test_an_installation_is_suspended_since_some_time() -> None:
    suspended = INSTALLATION | {"id": 78, "suspended_at": "2026-11-21T12:00:00Z"}
    enterprise = INSTALLATION | {"id": 79, "account": {"id": 1, "slug": "big", "name": "Big"}}
    seen = githubrest.parse_installations(page(None, INSTALLATION, suspended, enterprise))
    assert seen == (
        githubrest.InstallationSeen(77, 501, "octo-org", suspended=False),
        githubrest.InstallationSeen(78, 501, "octo-org", suspended=True),
    )


def test_a_repository_carries_its_owner_and_when_it_was_pushed_to() -> None:
    assert githubrest.parse_repositories(page("repositories", REPOSITORY)) == (
        githubrest.RepoSeen(REPO, archived=False, pushed_at=NOON),
    )
    (empty,) = githubrest.parse_repositories(page("repositories", REPOSITORY | {"pushed_at": None, "archived": True}))
    assert (empty.pushed_at, empty.archived) == (None, True)


def test_a_run_is_seen_in_its_newest_attempt() -> None:
    assert githubrest.parse_runs(page("workflow_runs", RUN)) == (githubrest.RunSeen(10, 2, NOON),)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("requested", JobState.WAITING),
        ("pending", JobState.WAITING),
        ("waiting", JobState.WAITING),
        ("queued", JobState.QUEUED),
        ("in_progress", JobState.IN_PROGRESS),
        ("completed", JobState.COMPLETED),
        ("dreaming", None),
    ],
)
def test_a_jobs_status_tells_what_its_webhook_would(status: str, told: JobState | None) -> None:
    assert job(status=status).told is told


def test_a_job_is_read_as_its_webhook_is() -> None:
    seen = job(status="completed", conclusion="success", runner_id=7, runner_name="nimbus-1-1")
    assert (seen.action, seen.conclusion, seen.runner_id, seen.runner_name) == ("completed", "success", 7, "nimbus-1-1")
    assert (seen.forge_job_id, seen.run_id, seen.run_attempt, seen.labels) == (20, 10, 2, ("nimbus", "x64"))
    assert (seen.repo, seen.installation_id, seen.created_at) == (REPO, 77, NOON)
    assert githubrest.parse_job(json.dumps(JOB).encode(), REPO, 77).told is JobState.QUEUED


def test_a_tenants_odd_labels_hide_no_other_job() -> None:
    odd = [JOB | {"id": 19, "labels": ["x" * 300]}, JOB | {"labels": None}, JOB | {"id": "21"}, 5, None]
    seen = githubrest.parse_jobs(page("jobs", *odd, JOB), REPO, 77)
    assert [(each.forge_job_id, each.labels) for each in seen] == [(19, ()), (20, ("nimbus", "x64"))]


def test_tokens_and_configs_are_read_and_never_shown() -> None:
    token = githubrest.parse_token(b'{"token": "ghs_x", "expires_at": "2026-11-21T12:00:00Z", "permissions": {}}')
    assert (token.token, token.expires_at_s) == ("ghs_x", NOON.timestamp())
    runner = githubrest.parse_jit(b'{"runner": {"id": 7, "name": "a"}, "encoded_jit_config": "c2VjcmV0"}')
    assert (runner.runner_id, runner.config) == (7, "c2VjcmV0")
    assert "ghs_x" not in repr(token)
    assert "c2VjcmV0" not in repr(runner)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b'{"token": "x"}', b'{"token": "", "expires_at": "2026-11-21T12:00:00Z"}',
     b'{"token": "x", "expires_at": 5}', b'{"token": "x", "expires_at": "soon"}',
     b'{"runner": {"id": 0}, "encoded_jit_config": "x"}', b'{"runner": [], "encoded_jit_config": "x"}'],
)  # fmt: skip
def test_a_token_or_config_that_is_none_is_refused(body: bytes) -> None:
    for parse in (githubrest.parse_token, githubrest.parse_jit):
        with pytest.raises(Refused):
            parse(body)


@pytest.mark.parametrize(("parse", "key", "element"), PAGES)
def test_a_page_of_another_form_is_refused(
    parse: Callable[[bytes], tuple[Any, ...]], key: str | None, element: dict[str, Any]
) -> None:
    for body in (b"", b"<html>", b"null", b"5", b'"x"', b"\xff", b"[" * 100_000, page("else", element)):
        with pytest.raises(Refused):
            parse(body)
    with pytest.raises(Refused):
        parse(page(key, *[element] * (githubrest.MAX_PAGE + 1)))
    assert parse(page(key)) == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize(("parse", "key", "element"), PAGES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_an_element_holds_its_neighbour_is_read(
    parse: Callable[[bytes], tuple[Any, ...]], key: str | None, element: dict[str, Any], data: st.DataObject
) -> None:
    broken = dict(element)
    for name in data.draw(st.sets(st.sampled_from(sorted(element)), min_size=1)):
        broken[name] = data.draw(JSON)
    seen = parse(page(key, broken, data.draw(JSON), element))
    assert seen[-1] == parse(page(key, element))[0]
    for each in seen:
        repr(each).encode("utf-8", "strict")


@pytest.mark.parametrize(("parse", "key", "element"), PAGES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_is_anything_but_read_or_refused(
    parse: Callable[[bytes], tuple[Any, ...]], key: str | None, element: dict[str, Any], body: bytes
) -> None:
    with contextlib.suppress(Refused):
        assert isinstance(parse(body), tuple)
