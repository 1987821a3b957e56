"""Requests of a command to the control plane: its options, its token, one call, what it says in JSON.

Never decides what is asked. Called by the commands that speak to the control plane's API.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
import httpx2
import trio

from nimbus.model.errors import Refused, Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors, open_http

SERVICE = "the control plane"
DEFAULT_URL = "http://127.0.0.1:8000"
_MEMORY = re.compile(r"([0-9]{1,9})([MG]?)i?B?", re.IGNORECASE)
T = TypeVar("T")
Reply = dict[str, Any]


def connection_options(command: Callable[..., T]) -> Callable[..., T]:
    """--base-url, --token and --json, the same on every command; nothing that it is given may be other than text."""
    command = _checked(command)
    command = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for programs.")(command)
    command = click.option("--token", default=None, help="A JWT; left out, one is minted from NIMBUS_JWT_SECRET.")(
        command
    )
    return click.option(
        "--base-url", envvar="NIMBUS_CONTROL_PLANE_URL", default=DEFAULT_URL, show_default=True, help="Control plane."
    )(command)


def _checked(command: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(command)
    def checked(**given: Any) -> T:
        for name, value in given.items():
            check_text(name, value)
        return command(**given)

    return checked


def check_text(name: str, value: object) -> None:
    """Refused for a word of the command line that is no UTF-8: no request could carry it."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Refused(f"{name}: UTF-8 text is needed") from error
    elif isinstance(value, tuple):
        for each in value:
            check_text(name, each)


def run_with(
    base_url: str, token: str | Callable[[], str], act: Callable[[httpx2.AsyncClient], Awaitable[Reply]]
) -> Reply:
    """The answer of `act` with a client for the control plane.

    What may last longer than a token lives gives a function: the token is made anew for each request.
    """
    make = token if callable(token) else lambda: token
    make()  # a missing credential is told before any connection

    def show(request: httpx2.Request) -> httpx2.Request:
        request.headers["Authorization"] = f"Bearer {make()}"
        return request

    async def run() -> Reply:
        async with open_http(base_url) as http:
            http.auth = show
            return await act(http)

    return trio.run(run)


async def call(http: httpx2.AsyncClient, method: str, path: str, body: Reply | None = None) -> Reply:
    """One request; the JSON object that answers it."""
    try:
        with mapped_http_errors(SERVICE):
            response = check_status(await http.request(method, path, json=body), SERVICE)
    except Unavailable as error:
        raise Unavailable(f"{error} ({http.base_url}; start one by: nimbus up)") from error
    try:
        reply = response.json()
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise Unavailable(f"{SERVICE} gave an answer that is no object: is {http.base_url} really one?")
    return reply


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def parse_mib(text: str, option: str = "--memory") -> int:
    """MiB of `512M`, `2G` or a bare number of MiB."""
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise Refused(f"{option} {text!r}: write it like 512M or 2G")
    return int(match[1]) * (1024 if match[2].upper() == "G" else 1)
