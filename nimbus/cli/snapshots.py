"""`nimbus snapshots`: build, list and verify the templates that machines boot from. Decides nothing.

The store keeps and judges them, host_agent/snapshots builds them. Needs no service.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import click

from nimbus.cli.snapshotbuild import build, say_since
from nimbus.cli.snapshottable import (
    HEAD,
    Entry,
    advise,
    cells,
    describe,
    find_differences,
    find_entries,
    moment,
    pick,
    rebuild_command,
    shorten,
)
from nimbus.cli.tables import cell, render_table
from nimbus.host_agent.settings import HostSettings, plan_layout, read_settings
from nimbus.model.errors import NotFound
from nimbus.storage.templates import BUILD_COMMAND, DamagedTemplate, Garbage, Template, TemplateStore

_DAY_S = 86400
_TOLD_EVERY_BYTES = 1 << 30


@click.group()
def snapshots() -> None:
    """Look after the templates that machines boot from: memory and disk of a guest that has just booted.

    \b
    nimbus snapshots build                    make the one for the default image and shape
    nimbus snapshots build --cpus 2 --memory 2G
    nimbus snapshots list
    nimbus snapshots verify                   read every byte of every template
    nimbus snapshots gc --keep 1              only the newest of each image and shape stay

    \b
    States: ready        a machine of that image and shape boots from it
            stale        the image, the host or its VMM is another since: such machines boot cold
            damaged      it is not what it was when it was built: remove it
            quarantined  it was set aside, and why; `gc` removes it a week later

    A template holds no job, no token and no runner: its guest was only asked whether it listens.
    """


snapshots.add_command(build)


@snapshots.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_(as_json: bool) -> None:
    """List this host's templates, newest first."""
    settings = read_settings(HostSettings)
    store = TemplateStore(plan_layout(settings).templates)
    entries = list(find_entries(store, find_differences(settings)))
    if as_json:
        click.echo(json.dumps([describe(entry) for entry in entries]))
        return
    if not entries:
        click.echo(f"no snapshot template on this host: every machine boots cold; `{BUILD_COMMAND}` makes one")
        return
    click.echo(render_table(HEAD, (cells(entry) for entry in entries)))
    for line in advise(entries):
        click.echo(line)


@snapshots.command()
@click.argument("digest", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def verify(digest: tuple[str, ...], as_json: bool) -> None:
    """Read every byte of the templates DIGEST, or of all, and compare it with what was built.

    DIGEST may be the first digits. Exit status 1 where one is damaged.
    """
    store = _store()
    wanted = [pick(store.digests(), prefix) for prefix in digest] or list(store.digests())
    entries = [_verify(store, one) for one in wanted]
    if as_json:
        click.echo(json.dumps([describe(entry) for entry in entries]))
    else:
        _tell_verified(entries)
    sys.exit(1 if any(entry.state == "damaged" for entry in entries) else 0)


@snapshots.command()
@click.argument("digest")
def remove(digest: str) -> None:
    """Remove the template DIGEST, or what was set aside under it. Machines that boot from it now go on."""
    store = _store()
    aside = {one.digest for one in store.quarantined()}
    found = pick((*store.digests(), *(one for one in aside if one not in store.digests())), digest)
    if store.remove(found):
        click.echo(f"removed {shorten(found)}")
    elif store.remove_quarantined(found):
        click.echo(f"removed {shorten(found)}, which had been set aside")
    else:
        raise NotFound(f"snapshot template {shorten(found)} has just been removed by another")


@snapshots.command()
@click.option("--keep", type=click.IntRange(min=0), default=2, show_default=True, help="Of each image and shape.")
@click.option("--max-age", type=click.FloatRange(min=0), default=None, metavar="DAYS", help="None older stays.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def gc(keep: int, max_age: float | None, dry_run: bool, as_json: bool) -> None:
    """Remove templates that newer ones replace, what was set aside a week ago, and what killed builds left.

    Machines that run from a removed template go on: they hold its memory.
    """
    oldest = None if max_age is None else time.time() - max_age * _DAY_S
    garbage = _store().gc(keep=keep, oldest=oldest, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(_describe_garbage(garbage) | {"dry_run": dry_run}))
        return
    for line in _tell_garbage(garbage, "would remove" if dry_run else "removed"):
        click.echo(line)


def _verify(store: TemplateStore, digest: str) -> Entry:
    say = say_since(time.monotonic())
    template = None
    try:
        template = store.find(digest)
        if template is None:
            raise NotFound(f"snapshot template {shorten(digest)} has just been removed by another")
        store.verify(template, _telling(template, say))
    except DamagedTemplate as damage:
        return Entry(digest, "damaged", template, (damage.what,))
    return Entry(digest, "sound", template)


def _telling(template: Template, say: Callable[[str], None]) -> Callable[[str, int], None]:
    """Tells of each file at its end, and of a large one on the way."""

    def tell(name: str, read: int) -> None:
        size = template.files[name].bytes
        if read == size or read % _TOLD_EVERY_BYTES == 0:
            say(f"{shorten(template.digest)}  {name}: {read >> 20} of {size >> 20} MiB")

    return tell


def _tell_verified(entries: list[Entry]) -> None:
    for entry in entries:
        if entry.state == "damaged":
            click.echo(f"{entry.short}  DAMAGED: {cell('; '.join(entry.why))}")
            click.echo(f"  `nimbus snapshots remove {entry.short}`, then `{rebuild_command(entry.template)}`")
        else:
            click.echo(f"{entry.short}  every byte is as it was built")
    if not entries:
        click.echo("no snapshot template on this host")


def _describe_garbage(garbage: Garbage) -> dict[str, object]:
    return {
        "templates": [template.digest for template in garbage.templates],
        "quarantined": [wreck.digest for wreck in garbage.quarantined],
        "unfinished": garbage.unfinished,
    }


def _tell_garbage(garbage: Garbage, done: str) -> Iterator[str]:
    for template in garbage.templates:
        yield f"{done} {shorten(template.digest)}  {cell(template.key.image)}, {moment(template.created_at)}"
    for wreck in garbage.quarantined:
        yield f"{done} {shorten(wreck.digest)}  set aside: {cell(wreck.why)}"
    if garbage.unfinished:
        yield f"{done} what {garbage.unfinished} killed builds had left"
    if not (garbage.templates or garbage.quarantined or garbage.unfinished):
        yield "nothing to remove"


def _store() -> TemplateStore:
    return TemplateStore(plan_layout(read_settings(HostSettings)).templates)
