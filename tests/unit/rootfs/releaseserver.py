"""A server of releases on a loopback port, that can do what servers do wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


@dataclass
class Page:
    """One file of the site, and how it is served."""

    content: bytes = b""
    etag: str | None = '"v1"'
    ranges: bool = True
    cut_at: int | None = None  # the connection breaks when so many bytes of the body have gone
    says_length: bool = True
    status: int = 200
    location: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    path: str
    range: str | None


@dataclass
class Site:
    """What is served, and what was asked. A test changes pages between two requests."""

    port: int = 0
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextmanager
def open_site() -> Iterator[Site]:
    site = Site()

    class Answering(_Handler):
        served = site

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.daemon_threads = False
        site.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: ClassVar[Site]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.served.asked.append(Request(self.path, asked))
        page = self.served.pages.get(self.path.partition("?")[0], Page(status=404, content=b"nothing here"))
        start = self._start_of(page, asked)
        if start is not None and start >= len(page.content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._answer(page, start)

    def _start_of(self, page: Page, asked: str | None) -> int | None:
        """Where the body starts; None for the whole."""
        condition = self.headers.get("If-Range")
        if asked is None or not page.ranges or (condition is not None and condition != page.etag):
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _answer(self, page: Page, start: int | None) -> None:
        body = page.content[start or 0 :]
        self.send_response(page.status if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(page.content) - 1}/{len(page.content)}")
        if page.etag is not None:
            self.send_header("ETag", page.etag)
        if page.location:
            self.send_header("Location", page.location)
        for name, value in page.headers.items():
            self.send_header(name, value)
        if page.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if page.cut_at is None else body[: page.cut_at])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name for it
        """A test's output is its own."""
