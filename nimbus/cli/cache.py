"""`nimbus cache`: mints a token for the cache and the registry. Talks to nobody; prints the token and nothing else."""

from __future__ import annotations

import sys
import time

import click

from nimbus.model.scope import MAX_ID, Action
from nimbus.wire.cachetokens import MAX_LIFE_S, derive_cache_key, plan_claims, render_cache_token


@click.command()
@click.option(
    "--secret",
    envvar="NIMBUS_CACHE_SHARED_SECRET",
    required=True,
    help="The services' NIMBUS_CACHE_SHARED_SECRET; read from that variable when left out.",
)
@click.option("--org-id", type=click.IntRange(1, MAX_ID), required=True, help="Nimbus' number of the organisation.")
@click.option("--repo-id", type=click.IntRange(1, MAX_ID), help="Only what this repository of it stores.")
@click.option("--ttl", type=click.IntRange(1, MAX_LIFE_S), default=3600, show_default=True, help="Seconds it is valid.")
@click.option(
    "--scope", "scopes", type=click.Choice([str(action) for action in Action]), multiple=True, help="Default: both."
)
def cache(secret: str, org_id: int, repo_id: int | None, ttl: int, scopes: tuple[str, ...]) -> None:
    """Mint a token for an organisation's stored things.

    It is bound to no job, so nothing but its time ends it: jobs get their own, which end with them.

    \b
    Examples:
      nimbus cache --org-id 123 --ttl 3600
      nimbus cache --org-id 123 --scope pull
    """
    actions = tuple(Action(scope) for scope in scopes) or tuple(Action)
    claims = plan_claims(org_id, now_s=time.time(), ttl_s=ttl, actions=actions, repo_id=repo_id)
    click.echo(render_cache_token(derive_cache_key(secret), claims))


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["cache", *sys.argv[1:]]))
