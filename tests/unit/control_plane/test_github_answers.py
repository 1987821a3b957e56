"""Each refusal of GitHub's is told apart by its status and words, and says who must act and when to ask again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.control_plane.github.answers import LONGEST_LIMIT_S, MAX_SAID_CHARS, Answer, hide_secrets, judge, read_said
from nimbus.model.forge import Problem, ProblemKind

NOW_S = 1_800_000_000.0
OWNER_S = 300.0
IP_WORDS = (
    "Although you appear to have the correct authorization credentials, the `octo-org` organization has an IP allow "
    "list enabled, and your IP address is not permitted to access this resource."
)


def refuse(status: int, message: object = "", *, as_app: bool = False, **more: object) -> Problem:
    headers = {name.replace("_", "-"): str(value) for name, value in more.items() if name != "errors"}
    body = {"message": message} | ({"errors": more["errors"]} if "errors" in more else {})
    return judge(Answer(status, headers, json.dumps(body).encode()), NOW_S, OWNER_S, as_app=as_app)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (403, "This installation has been suspended", ProblemKind.SUSPENDED),
        (403, "Sorry. Your account was suspended.", ProblemKind.SUSPENDED),
        (403, IP_WORDS, ProblemKind.IP_ALLOW_LIST),
        (403, "Your IP address 192.0.2.1 is not permitted to access this resource", ProblemKind.IP_ALLOW_LIST),
        (403, "Repository level self-hosted runners are disabled on this repository", ProblemKind.RUNNERS_DISABLED),
        (403, "Self-hosted runners are not allowed for this organization", ProblemKind.RUNNERS_DISABLED),
        (403, "GitHub Actions is currently disabled for your account", ProblemKind.ACTIONS_DISABLED),
        (403, "Actions has been disabled for this repository", ProblemKind.ACTIONS_DISABLED),
        (422, "Actions are not enabled for this repository", ProblemKind.ACTIONS_DISABLED),
        (403, "Resource not accessible by integration", ProblemKind.NO_PERMISSION),
        (403, "Must have admin rights to Repository.", ProblemKind.NO_PERMISSION),
        (422, "The permissions requested are not granted to this installation.", ProblemKind.NO_PERMISSION),
        (404, "Runner group not found", ProblemKind.GROUP_MISSING),
        (422, "Invalid Argument - Runner group 7 does not exist", ProblemKind.GROUP_MISSING),
        (422, "Invalid Argument - Runner group 1 has reached max limit of 10000 runners.", ProblemKind.GROUP_FULL),
        (404, "Not Found", ProblemKind.NOT_INSTALLED),
        (403, "API rate limit exceeded for installation ID 77.", ProblemKind.RATE_LIMIT),
        (403, "You have exceeded a secondary rate limit. Please wait a few minutes.", ProblemKind.SECONDARY_LIMIT),
        (403, "You have triggered an abuse detection mechanism.", ProblemKind.SECONDARY_LIMIT),
        (429, "Too many requests", ProblemKind.SECONDARY_LIMIT),
        (500, "Server Error", ProblemKind.OUTAGE),
        (502, "", ProblemKind.OUTAGE),
        (401, "Bad credentials", ProblemKind.OUTAGE),
        (403, "Forbidden", ProblemKind.REFUSED),
        (422, "Validation Failed", ProblemKind.REFUSED),
        (301, "Moved Permanently", ProblemKind.REFUSED),
    ],
)
def test_a_status_and_words_mean_one_kind(status: int, message: str, kind: ProblemKind) -> None:
    problem = refuse(status, message)
    assert problem.kind is kind
    assert problem.said == (message[:MAX_SAID_CHARS] or f"status {status}")


@pytest.mark.parametrize("message", ["A JSON web token could not be decoded", "Integration not found"])
def test_a_401_to_the_app_itself_is_its_key(message: str) -> None:
    problem = refuse(401, message, as_app=True)
    assert (problem.kind, problem.retry_after_s) == (ProblemKind.APP_KEY, OWNER_S)


def test_words_that_stand_in_the_errors_alone_count_too() -> None:
    words = "Repository level self-hosted runners are disabled on this repository"
    assert refuse(403, "Forbidden", errors=words).kind is ProblemKind.RUNNERS_DISABLED
    assert refuse(403, None, errors=[{"message": words}]).kind is ProblemKind.RUNNERS_DISABLED
    assert refuse(403, "Forbidden", errors=[words]).said == f"Forbidden - {words}"


def test_an_owners_turn_is_asked_about_again_when_the_operator_wants_it() -> None:
    assert refuse(403, "This installation has been suspended").retry_after_s == OWNER_S
    # whatever the quota: a suspension does not pass with the hour
    suspended = refuse(403, "This installation has been suspended", x_ratelimit_remaining=0, x_ratelimit_reset=NOW_S)
    assert suspended.kind is ProblemKind.SUSPENDED


def test_the_primary_limit_lasts_until_its_reset() -> None:
    spent = refuse(403, "", x_ratelimit_remaining=0, x_ratelimit_reset=int(NOW_S) + 1800)
    assert (spent.kind, spent.retry_after_s) == (ProblemKind.RATE_LIMIT, 1800.0)
    past = refuse(403, "", x_ratelimit_remaining=0, x_ratelimit_reset=int(NOW_S) - 5)
    assert past.retry_after_s == 1.0
    wrong_clock = refuse(403, "", x_ratelimit_remaining=0, x_ratelimit_reset=int(NOW_S) + 10**8)
    assert wrong_clock.retry_after_s == LONGEST_LIMIT_S
    assert refuse(403, "API rate limit exceeded").retry_after_s == 60.0


def test_the_secondary_limit_lasts_as_long_as_github_says_or_a_minute() -> None:
    assert refuse(403, "", retry_after=17).retry_after_s == 17.0
    assert refuse(429, "", retry_after=0).retry_after_s == 1.0
    assert refuse(429, "").retry_after_s == 60.0
    assert refuse(403, "", retry_after="Wed, 21 Oct 2026 07:28:00 GMT").kind is ProblemKind.REFUSED
    assert refuse(429, "", retry_after=10**11).retry_after_s == LONGEST_LIMIT_S


@pytest.mark.parametrize(
    "secret",
    [
        "ghs_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11AAA_bbb",
        "eyJhbGciOi.eyJpc3MiOi.c2lnbmF0dXJl",
        "A" * 44,
    ],
)
def test_what_looks_like_a_credential_is_hidden(secret: str) -> None:
    said = refuse(422, f"bad {secret} here", errors=[secret]).said
    assert said == "bad [hidden] here - [hidden]"
    assert secret not in repr(Answer(422, {}, secret.encode()))


def test_ordinary_words_are_not_hidden() -> None:
    assert hide_secrets(IP_WORDS) == IP_WORDS


def test_a_long_message_of_many_lines_becomes_one_short_line() -> None:
    said = refuse(422, "Invalid request.\n\n" + "word " * 1000).said
    assert said.startswith("Invalid request. word word")
    assert len(said) <= MAX_SAID_CHARS
    assert "\n" not in said


@settings(deadline=None)
@given(
    st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_body_is_too_odd_to_be_told(body: bytes) -> None:
    said = read_said(Answer(403, {}, body))
    assert 0 < len(said) <= MAX_SAID_CHARS
    said.encode()
    assert "\0" not in said


@settings(deadline=None)
@given(
    st.integers(300, 599),
    st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-remaining", "x-ratelimit-reset"]), st.text()),
    st.text(),
)
def test_every_refusal_is_judged_and_is_asked_about_again_some_day(
    status: int, headers: dict[str, str], message: str
) -> None:
    problem = judge(Answer(status, headers, json.dumps({"message": message}).encode()), NOW_S, OWNER_S, as_app=False)
    assert 0 < problem.retry_after_s <= LONGEST_LIMIT_S
