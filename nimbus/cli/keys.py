"""`nimbus admin keys`: the keys that sign tokens, over the control plane's API. Never holds or prints a key.

Output for people is an aligned table; `--json` gives the API's own objects.
"""

from __future__ import annotations

import time

import click
import httpx2

from nimbus.cli.access import choose_token
from nimbus.cli.plane import Reply, call, connection_options, print_json, run_with
from nimbus.cli.tables import cell, render_table, terminal_width
from nimbus.wire.tokens import Audience

FAMILIES = ("agent", "machine")
PATH = "/api/admin/keys"
# What an operator has to know who has just revoked a key that signed.
_BROKEN = {
    "agent": "Agents enrol again by themselves. A host whose enrolment token has expired needs a new one: nimbus auth.",
    "machine": "Output of machines that run now is refused and lost, once the logging pipeline has read the keys anew\n"
    "(restart it to have that at once). Their jobs end as they would have.",
}


@click.group()
def keys() -> None:
    """The keys that sign tokens: which there are, and how they change.

    \b
    Examples:
      nimbus admin keys list
      nimbus admin keys rotate                   both families; nothing is refused meanwhile
      nimbus admin keys rotate --family agent
      nimbus admin keys revoke KID               a key has leaked: refuse it at once

    Keys rotate by themselves, too: NIMBUS_KEY_ROTATION_INTERVAL. A token with role=admin and of no org is needed.
    """


@keys.command(name="list")
@connection_options
def list_keys(base_url: str, token: str | None, as_json: bool) -> None:
    """Every key by what it is now; shared secrets as the control plane that answers has them."""
    reply = _ask(base_url, token, "GET", PATH)
    if as_json:
        print_json(reply)
        return
    head = ("FAMILY", "ROLE", "SIGNS FROM", "ACCEPTED UNTIL", "FROM", "KID")
    click.echo(render_table(head, map(render_row, reply["keys"]), terminal_width()))


@keys.command()
@connection_options
@click.option("--family", type=click.Choice(FAMILIES), default=None, help="Of these keys only; both when left out.")
def rotate(base_url: str, token: str | None, as_json: bool, family: str | None) -> None:
    """Publish the next key; it signs when every verifier can know it.

    \b
    Example:
      nimbus admin keys rotate --family machine
    """
    reply = _ask(base_url, token, "POST", f"{PATH}/rotate", {} if family is None else {"family": family})
    if as_json:
        print_json(reply)
        return
    for rotation in reply["rotations"]:
        click.echo(render_rotation(rotation, time.time()))


@keys.command()
@connection_options
@click.argument("kid")
def revoke(base_url: str, token: str | None, as_json: bool, kid: str) -> None:
    """A key has leaked: refuse at once whatever it signed, and sign with another.

    \b
    Example:
      nimbus admin keys revoke wRc0GQkDH9nBTdAJdWRzYbkWYoCwyOFYQjzQe_JkJQs
    """
    reply = _ask(base_url, token, "POST", f"{PATH}/revoke", {"kid": kid})
    if as_json:
        print_json(reply)
    else:
        click.echo(render_revocation(reply))


# --- requests and values -----------------------------------------------------------------------------------------


def _ask(base_url: str, token: str | None, method: str, path: str, body: Reply | None = None) -> Reply:
    async def ask(http: httpx2.AsyncClient) -> Reply:
        return await call(http, method, path, body)

    return run_with(base_url, choose_token(token, Audience.ADMIN, role="admin"), ask)


def render_row(key: Reply) -> tuple[str, ...]:
    """One line of the list."""
    since, until = (render_moment(key[name]) for name in ("since_ms", "until_ms"))
    return (cell(key["family"]), key["role"], since, until, cell(key["source"]), cell(key["kid"]))


def render_moment(unix_ms: int | None) -> str:
    return "-" if unix_ms is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(unix_ms / 1000))


def render_rotation(rotation: Reply, now_s: float) -> str:
    """What was published, or that there is one already."""
    when = render_moment(round((now_s + rotation["signs_in_s"]) * 1000))
    what = "the next key is published" if rotation["made"] else "a next key was published already"
    return (
        f"{rotation['family']}: {what}; it signs from {when} ({rotation['signs_in_s']:.0f} s)  {cell(rotation['kid'])}"
    )


def render_revocation(revocation: Reply) -> str:
    """What is over, and what that breaks."""
    family, was = revocation["family"], revocation["was"]
    if was in {"revoked", "dropped"}:
        return f"{cell(revocation['kid'])} was {was} already: nothing of it is accepted"
    lines = [f"{family}: {cell(revocation['kid'])} is revoked; {cell(revocation['signs'])} signs."]
    if was != "next":  # what never signed breaks nothing
        lines.append(_BROKEN[family])
    return "\n".join(lines)
