"""Pages are kept within bounds, and a next page is found only where GitHub names one, on GitHub's own host."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.control_plane.github.answers import Answer
from nimbus.control_plane.github.pages import KeptPages, is_same_origin, next_cursor, next_link

API = "https://github.example/api/v3"


def page(body: bytes, etag: str | None = '"one"') -> Answer:
    return Answer(200, {} if etag is None else {"etag": etag}, body)


def linked(link: str) -> Answer:
    return Answer(200, {"link": link}, b"")


def test_a_page_is_kept_for_the_token_that_saw_it() -> None:
    pages, first = KeptPages(), page(b"[1]")
    pages.keep((77, "/runs"), first)
    assert pages.find((77, "/runs")) is first
    assert pages.find((78, "/runs")) is None, "another installation's token may see another page"


def test_a_page_without_an_etag_or_an_error_is_not_kept_and_drops_the_old_one() -> None:
    for answer in (page(b"[2]", None), Answer(404, {"etag": '"x"'}, b"")):
        pages = KeptPages()
        pages.keep((77, "/runs"), page(b"[1]"))
        pages.keep((77, "/runs"), answer)
        assert pages.find((77, "/runs")) is None


def test_the_least_used_page_is_dropped_first() -> None:
    pages = KeptPages(max_pages=2)
    for name in ("/a", "/b"):
        pages.keep((77, name), page(name.encode()))
    pages.find((77, "/a"))
    pages.keep((77, "/c"), page(b"/c"))
    assert [pages.find((77, name)) is not None for name in ("/a", "/b", "/c")] == [True, False, True]


def test_kept_bytes_are_bounded_whatever_the_pages_sizes() -> None:
    pages = KeptPages(max_bytes=100)
    for number in range(50):
        pages.keep((77, f"/{number}"), page(b"x" * 30))
    pages.keep((77, "/49"), page(b"y" * 41))
    assert [name for name in range(50) if pages.find((77, f"/{name}")) is not None] == [48, 49]
    pages.keep((77, "/huge"), page(b"z" * 101))
    assert pages.find((77, "/huge")) is None
    assert pages.find((77, "/49")) is not None, "it did not push the others out"


def test_the_next_page_is_the_one_named_next() -> None:
    link = f'<{API}/x?page=1>; rel="prev", <{API}/x?page=3&per_page=100>; rel="next", <{API}/x?page=9>; rel="last"'
    assert next_link(linked(link)) == f"{API}/x?page=3&per_page=100"
    assert next_link(linked(f"<{API}/x?page=9>; rel=next")) == f"{API}/x?page=9"
    for none in ("", f'<{API}/x?page=1>; rel="prev"', "rel=next", '<>; rel="next"'):
        assert next_link(linked(none)) is None


def test_a_cursor_is_read_from_the_next_pages_address() -> None:
    assert next_cursor(linked(f'<{API}/app/hook/deliveries?per_page=100&cursor=v1_12>; rel="next"')) == "v1_12"
    assert next_cursor(linked(f'<{API}/app/hook/deliveries?per_page=100>; rel="next"')) is None
    assert next_cursor(linked("")) is None


@pytest.mark.parametrize("url", [f"{API}/x", "https://github.example/other", "https://GITHUB.example:443/x"])
def test_the_same_scheme_host_and_port_are_the_same_origin(url: str) -> None:
    assert is_same_origin(url, API)


@pytest.mark.parametrize(
    "url",
    [
        "http://github.example/x",
        "https://github.example:444/x",
        "https://github.example.evil/x",
        "https://github.example@evil.example/x",
        "https://user@github.example/x",
        "https://evil.example/github.example",
        "//evil.example/x",
        "https://github.example:port/x",
        "https://[::1/x",
        "",
    ],
)
def test_everything_else_is_another_origin(url: str) -> None:
    assert not is_same_origin(url, API)


@settings(deadline=None)
@given(st.text())
def test_no_link_header_is_too_odd(text: str) -> None:
    answer = linked(text)
    next_cursor(answer)
    link = next_link(answer)
    assert link is None or link in text
    is_same_origin(text, API)
