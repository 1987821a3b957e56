"""`nimbus auth`: mints the token with which an agent enrols. Talks to nobody; prints the token and nothing else."""

from __future__ import annotations

import sys
import time
import uuid

import click

from nimbus.wire.tokens import Audience, hmac_key, render_token

MAX_TTL_S = 10 * 365 * 86400


@click.command()
@click.option("--agent-id", required=True, help="Name of the host, as it will appear in `nimbus jobs status`.")
@click.option(
    "--secret",
    envvar="NIMBUS_AGENT_TOKEN_SECRET",
    required=True,
    help="The control plane's NIMBUS_AGENT_TOKEN_SECRET; read from that variable when left out.",
)
@click.option("--ttl", type=click.IntRange(1, MAX_TTL_S), default=3600, show_default=True, help="Seconds it is valid.")
def auth(agent_id: str, secret: str, ttl: int) -> None:
    """Mint the token with which an agent enrols.

    \b
    Give it to the host as NIMBUS_CONTROL_PLANE_TOKEN:
      export NIMBUS_CONTROL_PLANE_TOKEN=$(nimbus auth --agent-id host-1 --ttl 86400)
    """
    if not agent_id.isprintable() or not 0 < len(agent_id) <= 128 or any(letter.isspace() for letter in agent_id):
        raise click.BadParameter("1 to 128 printable characters without spaces are needed", param_hint="--agent-id")
    identity = {"jti": str(uuid.uuid4())}  # by which it can be revoked
    key = hmac_key(secret)
    token = render_token(
        key, subject=agent_id, audience=Audience.AGENT_ENROLMENT, now_s=time.time(), ttl_s=ttl, claims=identity
    )
    click.echo(token)


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["auth", *sys.argv[1:]]))
