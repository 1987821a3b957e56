"""`nimbus admin migrate`: brings the database's schema up to date, or says what that would do. Speaks to the database.

Holds no step itself: control_plane/migrate.py does all of it, also at each start of a control plane.
"""

from __future__ import annotations

import sys

import click
import trio

from nimbus.cli.plane import print_json
from nimbus.control_plane.migrate import find_missing
from nimbus.control_plane.migrate import migrate as apply_missing
from nimbus.control_plane.settings import DatabaseSettings
from nimbus.runtime.postgres import open_database
from nimbus.runtime.settings import read_settings


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit status 1 where a step is missing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for programs.")
def migrate(check: bool, as_json: bool) -> None:
    """Bring the schema of the database that NIMBUS_DATABASE_URL names up to date.

    \b
    Examples:
      nimbus admin migrate --check       what is missing; changes nothing
      nimbus admin migrate

    Each step runs once, all that are missing in one transaction; control planes of the release before go on meanwhile.
    There is no way back but a backup. A control plane does the same when it starts.
    """
    dsn = read_settings(DatabaseSettings).database_url.get_secret_value()
    names = trio.run(_run, dsn, check)
    if as_json:
        print_json({"missing" if check else "applied": list(names)})
    else:
        word = "missing" if check else "applied"
        click.echo("\n".join(f"{word} {name}" for name in names) or "nothing to do")
    if check and names:
        sys.exit(1)


async def _run(dsn: str, check: bool) -> tuple[str, ...]:
    async with open_database(dsn, pool_size=1) as database:
        return await (find_missing(database) if check else apply_missing(database))
