"""`nimbus logs migrate`: brings the log store's schema up to date, or says what that would do. Holds no step itself.

nimbus/logging_pipeline/store/migrate.py does all of it, also at each start of the logging pipeline.
"""

from __future__ import annotations

import sys
from functools import partial

import click
import trio

from nimbus.cli.events import quiet_events
from nimbus.cli.plane import print_json
from nimbus.logging_pipeline.settings import StoreSettings
from nimbus.logging_pipeline.store.migrate import migrate_store
from nimbus.runtime.settings import read_settings


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit status 1 where a step is missing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for programs.")
def migrate(check: bool, as_json: bool) -> None:
    """Bring the schema of the ClickHouse server that NIMBUS_CLICKHOUSE_URL names up to date.

    \b
    Examples:
      nimbus logs migrate --check       what is missing; changes nothing
      nimbus logs migrate

    Each step runs once and can be repeated where it was cut short. A logging pipeline does the same when it starts.
    Without NIMBUS_CLICKHOUSE_URL it is the embedded engine below NIMBUS_STATE_DIR, which only one process can open.
    """
    quiet_events()
    names = trio.run(partial(migrate_store, read_settings(StoreSettings), check=check))
    if as_json:
        print_json({"missing" if check else "applied": names})
    else:
        word = "missing" if check else "applied"
        click.echo("\n".join(f"{word} {name}" for name in names) or "nothing to do")
    if check and names:
        sys.exit(1)
