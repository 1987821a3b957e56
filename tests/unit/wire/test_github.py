"""GitHub's formats as the control plane and the sim read and write them."""

from __future__ import annotations

import contextlib
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import Refused, Unauthorized
from nimbus.model.job import JobState
from nimbus.wire import github

SECRET = "the-current-one"


def payload(**job: Any) -> dict[str, Any]:
    """A `queued` delivery as GitHub writes it, with some of the job's fields replaced."""
    workflow_job = {
        "id": 2832853555, "run_id": 940463255, "run_attempt": 1, "name": "build", "workflow_name": "CI",
        "head_branch": "main", "head_sha": "e3103f8eb03e1ad7f2331c5446b23c070fc54055", "status": "queued",
        "html_url": "https://github.example/o/r/actions/runs/1/job/2", "conclusion": None,
        "created_at": "2026-11-21T08:00:00Z", "started_at": "2026-11-21T08:00:00Z", "completed_at": None,
        "labels": ["Nimbus", "X64"], "runner_id": None, "runner_name": None, "runner_group_id": None,
        "runner_group_name": None, "steps": [],
    } | job  # fmt: skip
    owner = {"id": 21031067, "login": "octo-org"}
    return {
        "action": "queued",
        "workflow_job": workflow_job,
        "repository": {
            "id": 186853002,
            "name": "hello",
            "full_name": "octo-org/hello",
            "private": True,
            "owner": owner,
        },
        "installation": {"id": 375706},
    }


def parse(top: dict[str, Any]) -> github.WorkflowJobEvent:
    return github.parse_workflow_job(json.dumps(top).encode())


def test_the_example_of_githubs_own_documentation_verifies() -> None:
    github.verify_signature(
        ["It's a Secret to Everybody"],
        b"Hello, World!",
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
    )


def test_during_a_rotation_both_secrets_are_accepted() -> None:
    for secret in ("new", "old"):
        github.verify_signature(["new", "old"], b"{}", github.render_signature(secret, b"{}"))


@pytest.mark.parametrize(
    "header",
    [None, "", "sha256=", "sha256=" + "0" * 64, "sha1=" + "0" * 40, "sha256=" + "é" * 64, "SHA256=" + "0" * 64],
)
def test_a_missing_wrong_or_odd_signature_is_unauthorized(header: str | None) -> None:
    with pytest.raises(Unauthorized):
        github.verify_signature([SECRET], b"{}", header)


def test_a_signature_over_another_body_is_unauthorized() -> None:
    with pytest.raises(Unauthorized):
        github.verify_signature([SECRET], b"{} ", github.render_signature(SECRET, b"{}"))


def test_an_empty_secret_never_verifies_anything() -> None:
    with pytest.raises(Unauthorized):
        github.verify_signature([""], b"{}", github.render_signature("", b"{}"))


def test_a_delivery_without_githubs_own_headers_is_refused() -> None:
    for headers in ({}, {"X-GitHub-Event": "ping"}, {"X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958"}):
        with pytest.raises(Refused):
            github.parse_webhook_headers(headers)


@pytest.mark.parametrize("guid", ["' OR 1=1--", "a" * 65, "short", "emoji-\U0001f600-emoji", "line\nbreak-12"])
def test_a_malformed_guid_is_refused(guid: str) -> None:
    with pytest.raises(Refused):
        github.parse_webhook_headers({"X-GitHub-Event": "ping", "X-GitHub-Delivery": guid})


def test_header_names_are_read_without_case() -> None:
    headers = github.parse_webhook_headers({"x-github-event": "ping", "X-GITHUB-DELIVERY": "12345678"})
    assert (headers.event, headers.guid, headers.signature) == ("ping", "12345678", None)


def test_githubs_missing_timestamp_header_passes_unless_the_operator_requires_it() -> None:
    github.check_timestamp(None, 1000.0, 300.0)
    with pytest.raises(Unauthorized):
        github.check_timestamp(None, 1000.0, 300.0, required=True)


@pytest.mark.parametrize("header", ["600", "1400", "-1000", "1e3", "", "9" * 400, "\u0661\u0660\u0660\u0660"])
def test_a_relays_timestamp_outside_the_tolerance_is_unauthorized(header: str) -> None:
    with pytest.raises(Unauthorized):
        github.check_timestamp(header, 1000.0, 300.0)


def test_a_queued_event_carries_ids_labels_repo_and_installation() -> None:
    event = parse(payload())
    assert event.told is JobState.QUEUED
    assert (event.forge_job_id, event.run_id, event.run_attempt) == (2832853555, 940463255, 1)
    assert event.labels == ("nimbus", "x64")
    assert event.runner_name is None
    assert event.installation_id == 375706
    assert (event.repo.full_name, event.repo.owner_id, event.repo.private) == ("octo-org/hello", 21031067, True)


def test_a_job_at_an_environment_gate_waits_though_its_action_is_queued() -> None:
    assert parse(payload(status="waiting")).told is JobState.WAITING


def test_the_action_decides_when_the_status_lags_behind() -> None:
    top = payload(status="queued", runner_name="nimbus-1-1", runner_id=7) | {"action": "in_progress"}
    assert parse(top).told is JobState.IN_PROGRESS


def test_an_unknown_action_and_conclusion_are_no_error() -> None:
    assert parse(payload() | {"action": "requested"}).told is None
    assert parse(payload(conclusion="startled") | {"action": "completed"}).conclusion == "startled"


def test_a_job_cancelled_before_pickup_has_no_runner() -> None:
    cancelled = payload(conclusion="cancelled", runner_id=0, runner_name="") | {"action": "completed"}
    event = parse(cancelled)
    assert (event.runner_id, event.runner_name) == (None, None)


def test_a_repository_hook_has_no_installation() -> None:
    top = payload()
    del top["installation"]
    assert parse(top).installation_id is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", None), ("id", "7"), ("id", True), ("id", 1.5), ("id", -1), ("id", 2**63), ("run_id", None),
        ("labels", None), ("labels", "nimbus"), ("labels", [1]),
        ("name", 5), ("runner_id", "x"), ("created_at", "yesterday"), ("created_at", 5),
    ],
)  # fmt: skip
def test_a_wrong_type_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(Refused, match=field):
        parse(payload(**{field: value}))


@pytest.mark.parametrize("labels", [["nimbus", "x" * 257], ["nimbus", "a\x00"], ["nimbus", "\ud800"], ["nimbus"] * 101])
def test_labels_that_no_runner_can_have_are_nobodys_and_no_error(labels: list[str]) -> None:
    assert parse(payload(labels=labels)).labels == ()


@pytest.mark.parametrize("key", ["workflow_job", "repository", "action"])
def test_a_missing_part_is_refused_and_named(key: str) -> None:
    top = payload()
    del top[key]
    with pytest.raises(Refused, match=key):
        parse(top)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff{}",
        b'{"a": NaN}',
        b'{"a":' * 60000,
        b"[" * 100000,
        b'{"a": ' + b"9" * 9999 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        github.parse_workflow_job(body)


def test_text_that_a_database_cannot_store_is_replaced() -> None:
    assert parse(payload(name="a\x00b\ud800c")).name == "a\ufffdb\ufffdc"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["workflow_job", "repository", "owner", "id", "labels", "action", "name"]), inner
            )
        ),
    )
)
def test_any_json_is_parsed_or_refused_and_nothing_else(value: object) -> None:
    with contextlib.suppress(Refused):  # any other exception fails the test
        github.parse_workflow_job(json.dumps(value).encode())


LABELS = st.lists(st.text(string.ascii_letters + string.digits + "-_.", min_size=1, max_size=8))


@given(LABELS, LABELS)
def test_a_runner_with_the_jobs_labels_and_more_serves_it_whatever_the_case(job: list[str], more: list[str]) -> None:
    assert github.runner_serves([label.swapcase() for label in job] + more, job)


def test_a_runner_that_lacks_one_label_does_not_serve_the_job() -> None:
    assert not github.runner_serves(["nimbus"], ["nimbus", "gpu"])
    assert github.runner_serves(["nimbus", "gpu"], ["GPU"])


def test_the_app_jwt_is_backdated_and_lives_less_than_ten_minutes() -> None:
    claims = github.app_jwt_claims("Iv1.abc", 1_000_000.7)
    assert claims == {"iat": 999_940, "exp": 1_000_480, "iss": "Iv1.abc"}


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.binary()))
def test_a_jit_config_reads_back_as_written(files: dict[str, bytes]) -> None:
    assert github.decode_jit_config(github.encode_jit_config(files)) == files


@pytest.mark.parametrize("text", ["", "not base64!", "bm90IGpzb24=", "eyIuYSI6IDV9", "eyIuYSI6ICIqIn0="])
def test_what_is_no_jit_config_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(Refused) as caught:
        github.decode_jit_config(text)
    assert not text or text not in str(caught.value)
