"""Fetches one file whose sha256 is known beforehand; what a broken connection leaves is gone on with the next time.

Never hands over a byte that was not checked, never follows a redirect to a host that was not allowed, never retries.
Called by `fetch.py`, which holds the lock of the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2
import trio

from nimbus.model.errors import HostFault, Refused, Unavailable
from nimbus.rootfs.releases import check_url
from nimbus.runtime.http import check_status, mapped_http_errors, open_http
from nimbus.runtime.threads import ThreadLane
from nimbus.storage.content import hash_file

_REDIRECTS_MAX = 5
_REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_TELL_EVERY_S = 1.0
_MIB = 1 << 20
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Source:
    """What to fetch and what is known of it. `title` names it to a person."""

    title: str
    url: str
    max_bytes: int
    sha256: str | None = None  # None: only for a list, whose trust comes from https
    redirect_hosts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Progress:
    """What an earlier call left: so many bytes of `url`, which the server named by this validator."""

    url: str
    validator: str | None
    total: int | None
    at: int = 0


@dataclass(frozen=True)
class Receipt:
    """What an answer brings: bytes from `at` on, to an end at `total` where the server says one."""

    at: int
    total: int | None


async def fetch_file(source: Source, folder: Path, say: Callable[[str], None]) -> Path:
    """The file, checked, in the folder; its caller moves it away or removes it."""
    lane = ThreadLane("download", 1)
    partial = folder / f"{source.sha256}.partial"
    progress = await lane.run(_read_progress, partial, source)
    async with open_http() as http:
        whole = progress.at > 0 and progress.at == progress.total  # and its check was cut short
        if not whole and not await _receive(http, source, progress, partial, lane, say):
            await lane.run(_forget, partial)
            await _receive(http, source, Progress(source.url, None, None), partial, lane, say)
    say(f"checking {source.title}")
    found = await lane.run(hash_file, partial)
    if found.sha256 != source.sha256:
        await lane.run(_forget, partial)
        raise HostFault(
            f"{source.title}: what {_shown(source.url)} holds hashes to {found.sha256}, and the release list says "
            f"{source.sha256}. Nothing was installed: find out which of the two is wrong before you trust either"
        )
    return partial


async def fetch_text(source: Source) -> bytes:
    """A small file, whole."""
    start = Progress(source.url, None, None)
    received = bytearray()
    async with open_http() as http, _open_answer(http, source, {}) as answer:
        receipt = plan_receipt(source, start, answer.status_code, answer.headers)
        assert receipt is not None  # noqa: S101 - so it is where nobody asked for a part
        async with aclosing(_chunks(answer, source, receipt, lambda _: None)) as chunks:
            async for chunk in chunks:
                received += chunk
    return bytes(received)


async def _receive(
    http: httpx2.AsyncClient,
    source: Source,
    progress: Progress,
    partial: Path,
    lane: ThreadLane,
    say: Callable[[str], None],
) -> bool:
    """One request, and its body into the file; False where the server cannot go on with what is there."""
    async with _open_answer(http, source, plan_headers(progress)) as answer:
        receipt = plan_receipt(source, progress, answer.status_code, answer.headers)
        if receipt is None:
            return False
        if receipt.at:
            say(f"{source.title}: going on at {_mib(receipt.at)}")
        elif progress.at:
            say(f"{source.title}: the server's file has changed, or it cannot go on with one; from the beginning")
        begun = Progress(source.url, read_validator(answer.headers), receipt.total, receipt.at)
        await lane.run(_begin, partial, begun)
        with await lane.run(partial.open, "ab") as file:
            try:
                async with aclosing(_chunks(answer, source, receipt, say)) as chunks:
                    async for chunk in chunks:
                        await lane.run(file.write, chunk)
            except Refused:  # too large: there is nothing to go on with
                _forget(partial)  # two unlinks, here: an await would lose the error to a cancellation
                raise
    return True


async def _chunks(
    answer: httpx2.Response, source: Source, receipt: Receipt, say: Callable[[str], None]
) -> AsyncGenerator[bytes, None]:
    """The body to its end, and an error where that is not the end that was said, or is beyond the limit."""
    at, told = receipt.at, trio.current_time()
    try:
        async with aclosing(answer.aiter_raw()) as body:  # no size: what was to fill a chunk is lost when it breaks
            async for chunk in body:
                at += len(chunk)
                if at > source.max_bytes:
                    await answer.aclose()  # and on to the error that follows: an iterator left early is never closed
                    continue
                yield chunk
                if trio.current_time() - told >= _TELL_EVERY_S:
                    told = trio.current_time()
                    say(f"{source.title}: {_mib(at)}" + (f" of {_mib(receipt.total)}" if receipt.total else ""))
    except (httpx2.RequestError, httpx2.StreamError) as error:
        if at <= source.max_bytes:
            raise _cut(source, at, receipt.total, type(error).__name__) from error
    if at > source.max_bytes:
        raise _too_big(source, at)
    if receipt.total is not None and at != receipt.total:
        raise _cut(source, at, receipt.total, "the body ended")


@asynccontextmanager
async def _open_answer(
    http: httpx2.AsyncClient, source: Source, headers: Mapping[str, str]
) -> AsyncIterator[httpx2.Response]:
    """The answer at the end of the redirects, its body unread."""
    url = source.url
    wanted = {"Accept-Encoding": "identity", **headers}  # or the sha256 would be that of something else
    for _ in range(_REDIRECTS_MAX + 1):
        with mapped_http_errors(f"the server of {source.title} ({_shown(url)})"):
            answer = await http.send(http.build_request("GET", url, headers=wanted), stream=True)
        try:
            if answer.status_code not in _REDIRECT_STATUS:
                yield answer
                return
            url = plan_redirect(source, url, answer.headers.get("location", ""))
        finally:
            with trio.move_on_after(1, shield=True):  # closing a connection needs nobody's answer
                await answer.aclose()
    raise HostFault(f"{source.title}: {_shown(source.url)} redirects more than {_REDIRECTS_MAX} times")


def plan_redirect(source: Source, url: str, location: str) -> str:
    """Where a redirect leads. HostFault where it leaves https, or the host for one that is not allowed."""
    try:
        joined = urljoin(url, location)
    except ValueError:
        joined = ""  # which is no address either
    target = check_url(joined, f"a redirect of {source.title}")
    old, new = urlsplit(url), urlsplit(target)
    if old.scheme == "https" and new.scheme != "https":
        raise HostFault(f"{source.title}: {_shown(url)} redirects from https to http: refused")
    if _host(new) not in {_host(old), *source.redirect_hosts}:
        raise HostFault(
            f"{source.title}: {_shown(url)} redirects to {_host(new)}, which the release list does not allow; if "
            "the release does lie there, add it to redirect_hosts"
        )
    return target


def plan_headers(progress: Progress) -> dict[str, str]:
    """What asks for the rest, and for the whole where the file is another by now. Without a validator: the whole."""
    if not progress.at or progress.validator is None:
        return {}
    return {"Range": f"bytes={progress.at}-", "If-Range": progress.validator}


def plan_receipt(source: Source, progress: Progress, status: int, headers: Mapping[str, str]) -> Receipt | None:
    """What to do with an answer; None: forget what is there and ask for the whole."""
    asked = bool(plan_headers(progress))
    if status == 416 and asked:
        return None
    server = f"the server of {source.title} ({_shown(source.url)})"
    check_status(httpx2.Response(status, headers={"retry-after": headers.get("retry-after", "")}), server)
    if headers.get("content-encoding", "identity") != "identity":
        raise HostFault(f"{server} sends the file packed in a way that nobody asked for")
    if status == 206 and asked:
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if match is None or int(match[1]) != progress.at or int(match[2]) + 1 != int(match[3]):
            return None
        receipt = Receipt(progress.at, int(match[3]))
    elif status == 200:
        length = headers.get("content-length", "")
        receipt = Receipt(0, int(length) if length.isascii() and length.isdigit() else None)
    else:
        raise HostFault(f"{server} answered {status}, which is no file")
    if receipt.total is not None and receipt.total > source.max_bytes:
        raise _too_big(source, receipt.total)
    return receipt


def read_validator(headers: Mapping[str, str]) -> str | None:
    """What names these very bytes: a strong ETag, else the time of the last change (the sha256 has the last word)."""
    tag = headers.get("etag", "")
    if tag.startswith('"') and len(tag) <= 256:
        return tag
    changed = headers.get("last-modified", "")
    return changed if changed and len(changed) <= 64 else None


def _read_progress(partial: Path, source: Source) -> Progress:
    try:
        noted = Progress(**json.loads(_note(partial).read_bytes()))
        at = partial.stat().st_size
    except (FileNotFoundError, ValueError, TypeError):
        return Progress(source.url, None, None)
    if noted.url != source.url or at > source.max_bytes:
        return Progress(source.url, None, None)
    return Progress(noted.url, noted.validator, noted.total, at)


def _begin(partial: Path, progress: Progress) -> None:
    """Cut the file to where the body goes on, then note whose bytes they are."""
    with partial.open("ab") as file:
        file.truncate(progress.at)
    written = partial.with_suffix(".noting")
    written.write_text(json.dumps(asdict(progress)))
    written.replace(_note(partial))


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)


def _note(partial: Path) -> Path:
    return partial.with_suffix(".from")


def _host(parts: SplitResult) -> str:
    port = parts.port
    odd = port is not None and port != _DEFAULT_PORTS[parts.scheme]
    return f"{parts.hostname}:{port}" if odd else str(parts.hostname)


def _shown(url: str) -> str:
    """An address without its query, where signed addresses keep their secret."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"


def _too_big(source: Source, size: int) -> Refused:
    return Refused(
        f"{source.title} has at least {size} bytes, and no more than {source.max_bytes} are taken (max_mib of the list)"
    )


def _cut(source: Source, at: int, total: int | None, why: str) -> Unavailable:
    end = f" of {total}" if total is not None else ""
    return Unavailable(
        f"{source.title}: the connection broke after {at}{end} bytes ({why}); run it again, it goes on from there"
    )
