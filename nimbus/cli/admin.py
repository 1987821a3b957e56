"""`nimbus admin`: what the operator of the whole service does. Collects its commands from their modules, holds none.

Each is imported when it is called; to add one, add a line to ADMIN_COMMANDS. Called by `nimbus/cli/command.py`.
"""

from __future__ import annotations

import sys

import click

from nimbus.cli.command import LazyGroup

ADMIN_COMMANDS: dict[str, tuple[str, str]] = {
    "migrate": ("nimbus.cli.migrate:migrate", "Bring the database's schema up to date."),
    "keys": ("nimbus.cli.keys:keys", "The keys that sign tokens: list, rotate, revoke."),
    "token": ("nimbus.cli.tokens:token", "Tokens of people and programs: mint, revoke."),
}


class AdminGroup(LazyGroup):
    """`nimbus admin` and what is listed above."""

    listed = ADMIN_COMMANDS


@click.group(cls=AdminGroup)
def admin() -> None:
    """What the operator of the whole service does, and nobody else."""


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["admin", *sys.argv[1:]]))
