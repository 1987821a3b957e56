"""One file over HTTP: whole and checked, or an error that says why and what is left to go on with."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nimbus.model.errors import Gone, HostFault, NotFound, Refused, Unavailable
from nimbus.rootfs.download import Progress, Source, fetch_file, fetch_text, plan_headers, plan_receipt, plan_redirect
from tests.unit.rootfs.releaseserver import Page, Request, Site, open_site

CONTENT = random.Random(7).randbytes(700_000)
MIB = 1 << 20


@pytest.fixture
def site() -> Iterator[Site]:
    with open_site() as opened:
        yield opened


def source_of(site: Site, content: bytes = CONTENT, path: str = "/file", **changes: object) -> Source:
    values = {"title": "kernel 6.1", "url": site.url(path), "max_bytes": MIB} | changes
    return Source(sha256=hashlib.sha256(content).hexdigest(), **values)  # type: ignore[arg-type]


async def fetch(source: Source, folder: Path) -> Path:
    with trio.fail_after(120):
        return await fetch_file(source, folder, lambda _: None)


def left_in(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


async def test_a_file_comes_whole_and_checked(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(CONTENT)
    assert (await fetch(source_of(site), tmp_path)).read_bytes() == CONTENT


async def test_a_broken_download_says_so_and_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(CONTENT, cut_at=300_000)
    with pytest.raises(
        Unavailable, match=r"kernel 6.1: the connection broke after 300000 of 700000 bytes.*run it again"
    ):
        await fetch(source_of(site), tmp_path)
    site.pages["/file"] = Page(CONTENT)
    assert (await fetch(source_of(site), tmp_path)).read_bytes() == CONTENT
    assert site.asked == [Request("/file", None), Request("/file", "bytes=300000-")]


async def test_a_download_goes_on_after_each_of_many_breaks(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(CONTENT, cut_at=250_000)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await fetch(source_of(site), tmp_path)
    assert (await fetch(source_of(site), tmp_path)).read_bytes() == CONTENT
    assert [request.range for request in site.asked] == [None, "bytes=250000-", "bytes=500000-"]


async def test_a_download_that_was_whole_before_its_check_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(CONTENT)
    await fetch(source_of(site), tmp_path)
    assert (await fetch(source_of(site), tmp_path)).read_bytes() == CONTENT
    assert len(site.asked) == 1


async def test_a_server_without_ranges_sends_it_all_again(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(CONTENT, cut_at=300_000)
    with pytest.raises(Unavailable):
        await fetch(source_of(site), tmp_path)
    site.pages["/file"] = Page(CONTENT, ranges=False)
    assert (await fetch(source_of(site), tmp_path)).read_bytes() == CONTENT


async def test_without_anything_that_names_the_bytes_the_whole_is_asked_for(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(CONTENT, etag=None, cut_at=300_000)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await fetch(source_of(site), tmp_path)
    assert [request.range for request in site.asked] == [None, None]


async def test_a_file_that_changed_in_between_is_not_sewn_together(site: Site, tmp_path: Path) -> None:
    other = CONTENT[::-1]
    site.pages["/file"] = Page(CONTENT, cut_at=300_000)
    with pytest.raises(Unavailable):
        await fetch(source_of(site), tmp_path)
    site.pages["/file"] = Page(other, etag='"v2"')
    with pytest.raises(HostFault, match=f"hashes to {hashlib.sha256(other).hexdigest()}, and the release list says"):
        await fetch(source_of(site), tmp_path)
    assert left_in(tmp_path) == []


async def test_a_file_that_shrank_in_between_is_fetched_from_the_beginning(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(CONTENT, cut_at=300_000)
    with pytest.raises(Unavailable):
        await fetch(source_of(site), tmp_path)
    site.pages["/file"] = Page(CONTENT[:1000])  # a server that does not change its ETag: 416
    with pytest.raises(HostFault, match="hashes to"):
        await fetch(source_of(site), tmp_path)
    assert [request.range for request in site.asked] == [None, "bytes=300000-", None]


async def test_bytes_that_lie_about_what_they_go_on_with_are_caught_and_not_kept(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(CONTENT[::-1], cut_at=300_000)
    with pytest.raises(Unavailable):
        await fetch(source_of(site), tmp_path)
    site.pages["/file"] = Page(CONTENT)  # the same ETag
    with pytest.raises(HostFault, match="Nothing was installed"):
        await fetch(source_of(site), tmp_path)
    assert (await fetch(source_of(site), tmp_path)).read_bytes() == CONTENT


async def test_a_wrong_hash_keeps_nothing(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(b"evil")
    with pytest.raises(HostFault, match="hashes to"):
        await fetch(source_of(site), tmp_path)
    assert left_in(tmp_path) == []


async def test_a_file_cut_short_by_a_server_that_says_no_length_is_caught_by_its_hash(
    site: Site, tmp_path: Path
) -> None:
    site.pages["/file"] = Page(CONTENT, says_length=False, cut_at=1000)
    with pytest.raises(HostFault, match="hashes to"):
        await fetch(source_of(site), tmp_path)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (403, Refused), (410, Gone), (503, Unavailable), (418, Refused)]
)
async def test_an_answer_that_is_no_file_names_the_file_the_address_and_the_status(
    site: Site, tmp_path: Path, status: int, kind: type[Exception]
) -> None:
    site.pages["/file"] = Page(b"x", status=status)
    with pytest.raises(kind, match=rf"kernel 6.1 \({site.url('/file')}\) answered {status}") as caught:
        await fetch(source_of(site, path="/file?signature=hunter2"), tmp_path)
    assert "hunter2" not in str(caught.value)
    assert left_in(tmp_path) == []


async def test_a_server_that_is_away_is_told_by_its_address(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"kernel 6.1 \(http://127.0.0.1:9/\) cannot be reached"):
        await fetch(Source("kernel 6.1", "http://127.0.0.1:9/?secret=hunter2", MIB, "a" * 64), tmp_path)


@pytest.mark.parametrize("says_length", [True, False])
async def test_more_than_the_list_allows_is_not_taken(site: Site, tmp_path: Path, says_length: bool) -> None:
    site.pages["/file"] = Page(bytes(2 * MIB), says_length=says_length)
    with pytest.raises(Refused, match=r"kernel 6.1 has at least [0-9]+ bytes, and no more than 1048576"):
        await fetch(source_of(site), tmp_path)
    assert left_in(tmp_path) == []


async def test_a_packed_answer_is_refused(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(CONTENT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(HostFault, match="packed in a way that nobody asked for"):
        await fetch(source_of(site), tmp_path)


async def test_a_redirect_on_the_same_host_is_followed(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/file": Page(status=302, location="/there/file"), "/there/file": Page(CONTENT)}
    assert (await fetch(source_of(site), tmp_path)).read_bytes() == CONTENT


async def test_a_redirect_to_another_host_is_refused_unless_the_list_allows_it(site: Site, tmp_path: Path) -> None:
    elsewhere = site.url("/there", host="localhost")
    site.pages |= {"/file": Page(status=302, location=elsewhere), "/there": Page(CONTENT)}
    with pytest.raises(HostFault, match=rf"redirects to localhost:{site.port}, which the release list does not allow"):
        await fetch(source_of(site), tmp_path)
    assert [request.path for request in site.asked] == ["/file"]
    allowed = source_of(site, redirect_hosts=frozenset({f"localhost:{site.port}"}))
    assert (await fetch(allowed, tmp_path)).read_bytes() == CONTENT


async def test_a_circle_of_redirects_ends(site: Site, tmp_path: Path) -> None:
    site.pages["/file"] = Page(status=302, location="/file")
    with pytest.raises(HostFault, match="redirects more than 5 times"):
        await fetch(source_of(site), tmp_path)


async def test_a_small_file_is_read_whole_and_a_large_one_is_not(site: Site) -> None:
    site.pages["/file"] = Page(b"x" * 100)
    assert await fetch_text(source_of(site, max_bytes=100)) == b"x" * 100
    with pytest.raises(Refused, match="no more than 99 are taken"):
        await fetch_text(source_of(site, max_bytes=99))


HTTPS = Source("kernel 6.1", "https://example.org/file", MIB, "a" * 64, frozenset({"cdn.example.org"}))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b", "https://example.org/b"),
        ("b?x=1", "https://example.org/b?x=1"),
        ("https://cdn.example.org/b", "https://cdn.example.org/b"),
        ("https://example.org:443/b", "https://example.org:443/b"),
        ("//cdn.example.org/b", "https://cdn.example.org/b"),
    ],
)
def test_an_allowed_redirect_is_followed(location: str, target: str) -> None:
    assert plan_redirect(HTTPS, HTTPS.url, location) == target


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://example.org/b", "from https to http"),
        ("http://cdn.example.org/b", "from https to http"),
        ("https://evil.example.org/b", "does not allow"),
        ("https://cdn.example.org.evil.example/b", "does not allow"),
        ("https://example.org:8443/b", "does not allow"),
        ("https://cdn.example.org@evil.example/b", "no user name"),
        ("file:///etc/shadow", "http or https"),
        ("https://[/b", "http or https"),
    ],
)
def test_a_redirect_that_was_not_allowed_is_refused(location: str, why: str) -> None:
    with pytest.raises((HostFault, Refused), match=why):
        plan_redirect(HTTPS, HTTPS.url, location)


def test_a_step_up_to_https_is_no_other_host() -> None:
    plain = Source("kernel 6.1", "http://example.org/file", MIB, "a" * 64)
    assert plan_redirect(plain, plain.url, "https://example.org/file") == "https://example.org/file"


HALF = Progress(HTTPS.url, '"v1"', 200, 100)


@pytest.mark.parametrize("said", ["", "bytes */200", "bytes 0-199/200", "bytes 101-199/200", "bytes 100-150/200", "x"])
def test_a_part_that_does_not_fit_is_not_taken(said: str) -> None:
    assert plan_receipt(HTTPS, HALF, 206, {"content-range": said}) is None


def test_a_part_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(HostFault, match="answered 206"):
        plan_receipt(HTTPS, Progress(HTTPS.url, None, None), 206, {"content-range": "bytes 0-199/200"})


def test_a_weak_validator_asks_for_no_part() -> None:
    assert plan_headers(Progress(HTTPS.url, None, 200, 100)) == {}
    assert plan_headers(HALF) == {"Range": "bytes=100-", "If-Range": '"v1"'}
