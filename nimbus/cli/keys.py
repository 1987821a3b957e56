"""`nimbus admin keys`: the keys that sign tokens, over the control plane's API. Never holds or prints a key."""

from __future__ import annotations

import click


@click.group()
def keys() -> None:
    """The keys that sign tokens: which there are, and how they change."""
