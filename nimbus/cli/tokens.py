"""`nimbus admin token`: mint a token for a person or a program, and end one before its time.

Minting talks to nobody, unless an organisation is named by its login; it prints the token and nothing else, so that
`$(...)` takes it. A token that is to be revoked comes on standard input, never as a word others can see in `ps`.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import sys
import time
import uuid
from typing import Any
from urllib.parse import quote

import click
import httpx2

from nimbus.cli.access import choose_token, find_admin_key
from nimbus.cli.plane import DEFAULT_URL, Reply, call, check_text, connection_options, print_json, run_with
from nimbus.model.errors import Refused
from nimbus.model.scope import MAX_ID
from nimbus.wire.fields import parse_object
from nimbus.wire.tokens import MAX_TOKEN_CHARS, Audience, render_token

MAX_TTL_S = 366 * 86_400
ONCE_MAX_S = 3600  # a Redis that lost its data forgets what was used: such a token must not outlive that by much
ALLOWED_VARIABLE = "NIMBUS_ADMIN_ALLOWED_SUBJECTS"
AUDIENCES = {"api": Audience.ADMIN, "logs": Audience.LOGS_READ}
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd]?)")
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.group()
def token() -> None:
    """Tokens of people and programs: mint, revoke.

    \b
    Examples:
      nimbus admin token mint --subject alice --role admin --ttl 8h
      nimbus admin token mint --subject ci --org octo-org --ttl 30d
      nimbus admin token revoke - < token.txt
    """


@token.command()
@click.option("--subject", required=True, help="Who it is for; it stands beside what they do.")
@click.option("--role", type=click.Choice(["read", "admin"]), default="read", show_default=True, help="What it may do.")
@click.option("--org", help="One organisation, by Nimbus' number or its login; left out: all of them.")
@click.option("--ttl", default="1h", show_default=True, help="How long it is valid: 90s, 15m, 8h, 30d.")
@click.option(
    "--for",
    "service",
    type=click.Choice(["api", "logs"]),
    default="api",
    show_default=True,
    help="What it opens: the control plane's API, or the reading of output (the logging pipeline).",
)
@click.option("--once", is_flag=True, help="Good for one call that changes something; at most an hour.")
@click.option(
    "--base-url", envvar="NIMBUS_CONTROL_PLANE_URL", default=DEFAULT_URL, help="Control plane; asked for a login only."
)
def mint(*, subject: str, role: str, org: str | None, ttl: str, service: str, once: bool, base_url: str) -> None:
    """Print a token for the control plane's API or for reading output, signed by NIMBUS_JWT_SECRET.

    \b
    Examples:
      nimbus admin token mint --subject alice --role admin --ttl 8h
      nimbus admin token mint --subject deploy --role admin --org 7 --once
      nimbus admin token mint --subject dashboard --org octo-org --for logs --ttl 8h
    """
    if service == "logs" and (once or role != "read"):
        raise Refused("a token for logs only reads: leave --role and --once out")
    key = find_admin_key()
    ttl_s = parse_ttl(ttl, ONCE_MAX_S if once else MAX_TTL_S)
    check_subject(subject, os.environ.get(ALLOWED_VARIABLE, ""))
    claims: dict[str, object] = {"role": role, "jti": str(uuid.uuid4())}
    if org is not None:
        claims["org_id"] = find_org(org, base_url)
    if once:
        claims["nonce"] = secrets.token_urlsafe(24)
    click.echo(
        render_token(key, subject=subject, audience=AUDIENCES[service], now_s=time.time(), ttl_s=ttl_s, claims=claims)
    )


@token.command()
@connection_options
@click.argument("jti")
def revoke(base_url: str, token: str | None, as_json: bool, jti: str) -> None:
    """End a token before its time, in every control plane. JTI is its id, or - for a token on standard input.

    By its id alone it stays on the list for good; of a token itself the end is known, and the list forgets it then.

    \b
    Examples:
      nimbus admin token revoke - < token.txt
      nimbus admin token revoke 0c9d3f4e-8f3b-4a55-9a0d-2f1c6a7b8c9d
    """
    body = read_identity(_read_stdin()) if jti == "-" else {"jti": jti}
    if len(str(body["jti"])) > 128 or str(body["jti"]).count(".") == 2:
        raise Refused("that is no id of a token; give a token itself on standard input: nimbus admin token revoke -")

    async def ask(http: httpx2.AsyncClient) -> Reply:
        return await call(http, "POST", "/api/admin/tokens/revoke", body)

    reply = run_with(base_url, choose_token(token, Audience.ADMIN, role="admin"), ask)
    if as_json:
        print_json(reply)
    else:
        click.echo(f"token {reply['jti']} is revoked: nobody takes it any more")


def _read_stdin() -> str:
    """What stands there, as far as a token goes; what is no text becomes what no token holds."""
    return sys.stdin.buffer.read(MAX_TOKEN_CHARS + 1).decode(errors="replace")


def parse_ttl(text: str, most_s: int) -> int:
    """Seconds of `90s`, `15m`, `8h`, `30d` or a bare number of seconds."""
    match = _DURATION.fullmatch(text)
    seconds = 0 if match is None else int(match[1]) * _UNITS_S[match[2]]
    if not 0 < seconds <= most_s:
        raise Refused(f"--ttl {text[:32]!r}: write it like 90s, 15m, 8h or 30d; {most_s} seconds at most")
    return seconds


def check_subject(subject: str, allowed: str) -> None:
    """Refused where the control plane would not take a token of that subject: it reads the same variable."""
    if not 0 < len(subject) <= 256 or not subject.isprintable():
        raise Refused("--subject: 1 to 256 printable characters are needed")
    words = {word.strip() for word in allowed.split(",")} - {""}
    if words and subject not in words:
        raise Refused(f"--subject {subject[:64]!r} is not among {ALLOWED_VARIABLE}: {', '.join(sorted(words))}")


def find_org(name: str, base_url: str) -> int:
    """Our number of an org; a login is asked for."""
    if name.isascii() and name.isdigit():
        if name.startswith("0") or int(name) > MAX_ID:
            raise Refused(f"--org {name[:32]!r} is no number of an organisation")
        return int(name)

    check_text("--org", name)

    async def ask(http: httpx2.AsyncClient) -> Reply:
        return await call(http, "GET", f"/api/orgs/{quote(name, safe='')}")

    return int(run_with(base_url, choose_token(None, Audience.ADMIN), ask)["org_id"])


def read_identity(text: str) -> dict[str, Any]:
    """The id and the end that a token carries. Its signature is not looked at: the id is all that counts."""
    segments = text.strip().split(".")
    try:
        if len(text) > MAX_TOKEN_CHARS or len(segments) != 3:
            raise ValueError("no token")
        payload = parse_object(base64.urlsafe_b64decode(segments[1] + "=" * (-len(segments[1]) % 4)), "token")
        return {"jti": payload.text("jti", 128), "exp": payload.integer("exp")}
    except (ValueError, Refused) as error:
        raise Refused("standard input holds no token with an id (jti): such a one ends by its expiry alone") from error
