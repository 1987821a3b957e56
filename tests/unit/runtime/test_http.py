"""The HTTP client: every failure is one of our errors, by who must act, and carries no secret."""

from __future__ import annotations

import httpx2
import pytest

from nimbus.model.errors import (
    Conflict,
    Fenced,
    Forbidden,
    Gone,
    NimbusError,
    NotFound,
    RateLimited,
    Refused,
    Unauthorized,
    Unavailable,
)
from nimbus.runtime.http import check_status, mapped_http_errors, open_http


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "refused", Refused), (401, "unauthorized", Unauthorized), (403, "forbidden", Forbidden),
        (404, "not_found", NotFound), (409, "fenced", Fenced), (409, "conflict", Conflict), (410, "unneeded", Gone),
        (413, "", Refused), (418, "", Refused), (429, "", RateLimited), (500, "", Unavailable), (503, "", Unavailable),
    ],
)  # fmt: skip
def test_each_status_is_an_error_by_who_must_act(status: int, code: str, kind: type[NimbusError]) -> None:
    with pytest.raises(NimbusError, match="do this") as caught:
        check_status(httpx2.Response(status, json={"error": code, "message": "do this"}), "the service")
    assert type(caught.value) is kind


@pytest.mark.parametrize("header", ["7", "abc", "-1", "9999999", ""])
def test_a_time_to_wait_is_believed_when_it_is_one(header: str) -> None:
    with pytest.raises(Unavailable) as caught:
        check_status(httpx2.Response(503, headers={"Retry-After": header}), "the service")
    assert caught.value.retry_after_s == (7.0 if header == "7" else 5.0)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"[" * 99999, b'{"message": 7}', b"\xff"])
def test_a_body_that_is_not_ours_says_the_status(body: bytes) -> None:
    with pytest.raises(Unavailable):
        check_status(httpx2.Response(502, content=body), "the service")


async def test_a_service_that_is_away_is_unavailable_and_its_address_stays_unsaid() -> None:
    async with open_http("http://127.0.0.1:9/?sig=hunter2", token="hunter3") as http:
        with pytest.raises(Unavailable) as caught, mapped_http_errors("the service"):
            await http.get("/")
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("error", [httpx2.DecodingError("gzip"), httpx2.ReadTimeout("slow")])
def test_an_answer_that_cannot_be_read_is_unavailable(error: httpx2.RequestError) -> None:
    with pytest.raises(Unavailable), mapped_http_errors("the service"):
        raise error


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with open_http("http://127.0.0.1:9") as http:
        assert http.trust_env is False
        assert http.follow_redirects is False


async def test_clients_share_whom_they_trust_since_reading_that_stops_the_loop() -> None:
    async with open_http() as first, open_http() as second:
        assert trust_of(first) is trust_of(second)


def trust_of(client: httpx2.AsyncClient) -> object:
    return client._transport._pool._ssl_context  # type: ignore[attr-defined]
